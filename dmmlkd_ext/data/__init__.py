"""Multi-modal datasets by name, and the samples and modalities of every device."""

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.data.partition import (
    assign_modalities,
    partition_dirichlet,
    partition_iid,
    partition_natural,
)
from dmmlkd_ext.data.registry import available_datasets, load_dataset, register_dataset
from dmmlkd_ext.data.sets.avdigits import load_avdigits, load_avdigits_clean
from dmmlkd_ext.data.sets.cameras import load_cameras
from dmmlkd_ext.data.sets.cremad import load_cremad
from dmmlkd_ext.data.sets.mfeat import load_mfeat, load_mfeat_pair
from dmmlkd_ext.data.sets.ucihar import load_ucihar
from dmmlkd_ext.data.sets.watch import load_watch
from dmmlkd_ext.data.sources.fetch import ChecksumError, DataUnavailableError

__all__ = [
    "ChecksumError",
    "DataUnavailableError",
    "MultiModalDataset",
    "Split",
    "assign_modalities",
    "available_datasets",
    "load_dataset",
    "partition_dirichlet",
    "partition_iid",
    "partition_natural",
    "register_dataset",
]

# `replace`, because a reloaded module registers its datasets again.
register_dataset("avdigits", load_avdigits, replace=True)
register_dataset("avdigits-clean", load_avdigits_clean, replace=True)
register_dataset("cameras", load_cameras, replace=True)
register_dataset("cremad", load_cremad, replace=True)
register_dataset("mfeat", load_mfeat, replace=True)
register_dataset("mfeat-pair", load_mfeat_pair, replace=True)
register_dataset("ucihar", load_ucihar, replace=True)
register_dataset("watch", load_watch, replace=True)
