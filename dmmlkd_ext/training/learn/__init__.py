"""A round's local training: the loss terms, the batches, the reference and the native round."""
