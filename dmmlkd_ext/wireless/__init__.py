"""The simulated wireless links: who is linked to whom, at what rate and energy, and what fails (METHOD 4 and 6).

It knows nothing of training. Import from its modules: nothing is gathered here, so that a configuration can
be read without the graph library, which `topology` needs (extra `simulation`).
"""
