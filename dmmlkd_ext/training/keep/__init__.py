"""Records, checkpoints, and files that are complete or absent."""
