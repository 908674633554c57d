"""Encoders, the decomposed multi-modal network, the generator."""
