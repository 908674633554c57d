"""A round's local training: the loss terms, the batches, and the two tiers: reference and native."""

from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.tiers import SLOWER, train, why_reference

__all__ = ["SLOWER", "LocalTask", "train", "why_reference"]
