"""Every figure and table, from its runs to its files: plan, collect, judge, draw."""
