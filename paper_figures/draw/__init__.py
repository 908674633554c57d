"""One look for all figures, the text beside them, and their files."""
