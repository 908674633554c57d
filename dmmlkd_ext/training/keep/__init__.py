"""What is kept of a run: records, checkpoints, and files that are whole or absent."""
