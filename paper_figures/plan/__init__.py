"""What is run, and what it is called: experiments, worlds, profiles, tuned settings, labels."""
