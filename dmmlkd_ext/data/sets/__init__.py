"""The datasets of this package, each a loader."""
