"""From the folders of runs, and the results of benchmarks, to the tables that everything is drawn from."""
