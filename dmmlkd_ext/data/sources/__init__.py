"""The sources of data: downloads, wheels, and their file formats."""
