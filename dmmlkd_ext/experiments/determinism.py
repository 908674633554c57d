"""Torch settings under which the same configuration gives the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Set torch up for a run whose bits can be repeated, and restore its settings afterwards.

    An operator without a deterministic implementation raises. Uninitialized memory is not filled, which torch does by
    default in this mode: it costs a pass over memory, and nothing here reads such memory. A GPU computes in full
    float32, not in TF32, and does not choose convolutions by their speed, which differs from call to call.

    Args:
        threads: CPU threads of torch, at least 1; another number may split sums differently and change the last bits.

    Raises:
        ValueError: `threads` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    # cuBLAS is deterministic only with a workspace per stream, and reads this when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic  # its property is set on the module's class
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    filled = memory.fill_uninitialized_memory
    matrices, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    shortcuts = matrices.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    torch.set_num_threads(threads)
    # The same switch as use_deterministic_algorithms(True), which also imports a compiler for about a second.
    torch.set_deterministic_debug_mode("error")
    memory.fill_uninitialized_memory = False
    matrices.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        memory.fill_uninitialized_memory = filled
        matrices.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = shortcuts
