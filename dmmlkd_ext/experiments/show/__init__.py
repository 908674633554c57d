"""Comparisons of runs as text and as pictures; imported where it is asked for, since it needs pandas and matplotlib."""
