"""The simulated wireless links: the graph, rates, energies and failures (METHOD 4 and 6), independent of training.

Import from its modules: this file imports none, so that a configuration can be read without the graph library, which
`topology` needs (extra `simulation`).
"""
