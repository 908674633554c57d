"""Which datasets are at hand or can be had."""

from __future__ import annotations

import sys

from dmmlkd_ext.data import ChecksumError, DataUnavailableError, load_dataset


def can_load(dataset: str) -> bool:
    """Load a dataset once here, so that the runs' processes do not all download it; say why if it cannot be had."""
    try:
        load_dataset(dataset)
    except (DataUnavailableError, ChecksumError) as error:
        print(f"dataset {dataset} is left out: {' '.join(str(error).split())}", file=sys.stderr)
        return False
    return True
