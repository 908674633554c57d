"""Gossip for modules, all in one process or one per rank: their parameters are rows of a matrix (METHOD 4, 5).

Five lines in a training script that torchrun starts, one module per rank, any optimizer::

    dist.init_process_group("gloo")
    group = GossipGroup(module)
    weights = GossipWeights.metropolis([[0, 1], [1, 2], [2, 3]], dist.get_world_size())
    ...  # train as usual, and between steps of your choice
    group.mix(weights)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from dmmlkd_ext.ops.arguments import check_floating
from dmmlkd_ext.ops.gossip_mix import gossip_mix
from dmmlkd_ext.ops.gossip_weights import GossipWeights

Named = dict[str, torch.Tensor]
BUFFERS = ("average", "keep", "refuse")
_LINE_BYTES = 64  # rows are aligned to cache lines


class GroupVariation(NamedTuple):
    """How far training moved this process's modules; sqrt(variation / start) is the relative variation of METHOD 5."""

    variation: torch.Tensor
    """float64 [modules]: squared norm of the parameters' change since the last mixing, or since the group was made."""
    start: torch.Tensor
    """float64 [modules]: squared norm of the parameters then."""


class GossipGroup:
    """Modules of one architecture that mix their parameters with those of their neighbours.

    Each module's parameters become views of a row of a matrix, so mixing needs no copies. They stay the same
    `nn.Parameter` objects: optimizers, `state_dict`, `load_state_dict` and `zero_grad` work as before, and a saved
    `state_dict` holds its module's row alone. Gradients and the state of optimizers are not mixed. A second matrix of
    the same size keeps the result of the last mixing.

    Args:
        modules: all modules, in one process; or, over torch.distributed, this rank's module: then every rank makes a
            group with a module of the same architecture, and module i is that of rank i.
        buffers: "average" mixes floating-point buffers (such as the statistics of BatchNorm) by the same weights, and
            no integer buffers such as counts; "keep" mixes none; "refuse" raises if there are any.
        process_group: the ranks that take part; None is all of them.

    Raises:
        TypeError: `modules` holds something that is not a module.
        ValueError: the modules differ in names, shapes, dtypes or devices, share a tensor, have no parameters or lazy
            ones, or have buffers that are refused; all ranks raise if their modules differ.

    Source:
        METHOD 4 and 5.

    Example:
        >>> modules = [nn.Linear(3, 1) for _ in range(3)]
        >>> group = GossipGroup(modules)
        >>> weights = GossipWeights.metropolis([[0, 1], [1, 2]], 3)
        >>> optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
        >>> for round in range(60):
        ...     for module, optimizer in zip(modules, optimizers):
        ...         optimizer.zero_grad()
        ...         (module(torch.ones(2, 3)) - 1).square().mean().backward()
        ...         optimizer.step()
        ...     moved = group.mix(weights, measure=True)
        >>> torch.allclose(modules[0].weight, modules[2].weight), moved.variation.shape
        (True, torch.Size([3]))
    """

    def __init__(
        self,
        modules: nn.Module | Sequence[nn.Module],
        *,
        buffers: Literal["average", "keep", "refuse"] = "keep",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if buffers not in BUFFERS:
            raise ValueError(f"GossipGroup: buffers must be one of {', '.join(BUFFERS)}; got {buffers!r}")
        self._neighbours = _Neighbours(process_group) if isinstance(modules, nn.Module) else None
        held = [modules] if isinstance(modules, nn.Module) else list(modules)
        for module in held:
            if not isinstance(module, nn.Module):
                raise TypeError(f"GossipGroup: modules must be nn.Module, got {type(module).__name__}")
            if buffers == "refuse" and any(True for _ in module.buffers()):
                raise ValueError(f"GossipGroup: modules must have no buffers, got {next(module.named_buffers())[0]}")
        parameters: list[Named] = [dict(module.named_parameters()) for module in held]
        _check_alike(parameters)
        self._blocks = [_Block(part) for part in _by_dtype(parameters)]
        self._averaged: list[_Block] = []
        if buffers == "average":
            averaged = [{n: b for n, b in module.named_buffers() if b.is_floating_point()} for module in held]
            _check_alike(averaged, may_be_empty=True)
            self._averaged = [_Block(part) for part in _by_dtype(averaged)]
        if self._neighbours:
            self._neighbours.check_alike([block.signature for block in self._blocks + self._averaged])
        for block in self._blocks + self._averaged:
            block.lay(0)

    @torch.no_grad()
    def mix(self, weights: GossipWeights, measure: bool = False) -> GroupVariation | None:
        """Replace the parameters of module i by the sum over j of weights_ij times those of module j.

        Over torch.distributed every rank calls this with the same weights [ranks, ranks]; only neighbours exchange
        rows, and the bits are those of one process.

        Args:
            weights: square, one row per module; converted to the parameters' torch device and dtype.
            measure: also return how far training moved this process's modules since the last mixing.

        Raises:
            TypeError: `weights` is not `GossipWeights`.
            ValueError: `weights` has not one row per module, or the memory of a parameter was replaced (by
                `Module.to`, `half` and the like) after the group was made; make a new group then.

        Example:
            >>> modules = [nn.Linear(1, 1, bias=False) for _ in range(2)]
            >>> for value, module in enumerate(modules):
            ...     _ = nn.init.constant_(module.weight, value)
            >>> GossipGroup(modules).mix(GossipWeights.metropolis([[0, 1]], 2))
            >>> modules[0].weight.item()
            0.5
        """
        if not isinstance(weights, GossipWeights):
            raise TypeError(f"GossipGroup: weights must be GossipWeights, got {type(weights).__name__}")
        blocks = self._blocks + self._averaged
        size = self._neighbours.size if self._neighbours else blocks[0].modules
        if weights.row_pointers.shape[0] - 1 != size:
            raise ValueError(
                f"GossipGroup: weights must have one row per module, {size}, got {weights.row_pointers.shape[0] - 1}"
            )
        for block in blocks:
            block.check_in_place()
        if self._neighbours:
            weights = self._neighbours.fetch(weights, blocks)
        norms = [block.mix(weights, measure and block in self._blocks) for block in blocks]
        if not measure:
            return None
        variation, start = (torch.stack(part).sum(0) for part in zip(*norms[: len(self._blocks)], strict=True))
        return GroupVariation(variation, start)


class _Block:
    """The tensors of one dtype of this process's modules, one row per module, and rows of neighbours."""

    def __init__(self, tensors: list[Named]) -> None:
        self.modules, self.tensors = len(tensors), tensors
        self.columns = sum(tensor.numel() for tensor in tensors[0].values())
        first = next(iter(tensors[0].values()))
        self.dtype, self.device = first.dtype, first.device
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.signature = [(name, str(t.dtype), list(t.shape)) for name, t in tensors[0].items()]

    def lay(self, halo: int) -> None:
        """Move the tensors into a matrix with `halo` further rows."""
        line = _LINE_BYTES // self.dtype.itemsize
        stride = (self.columns + line - 1) // line * line
        matrix = torch.zeros(self.modules + halo, stride, dtype=self.dtype, device=self.device)
        self.rows = matrix[:, : self.columns]
        row_bytes = stride * self.dtype.itemsize
        for i, named in enumerate(self.tensors):
            # One storage per row: torch.save writes whole storages.
            storage, begin = matrix.untyped_storage()[i * row_bytes : (i + 1) * row_bytes], 0
            for tensor in named.values():
                view = torch.empty(0, dtype=self.dtype, device=self.device)
                view.set_(storage, begin, tensor.shape)  # type: ignore[call-overload]
                tensor.data = view.copy_(tensor.data)
                begin += tensor.numel()
        if not hasattr(self, "start"):
            self.start = torch.empty(self.modules, stride, dtype=self.dtype, device=self.device)[:, : self.columns]
            self.start.copy_(self.rows[: self.modules])

    def check_in_place(self) -> None:
        """Raise ValueError if a tensor is no longer in its row."""
        for i, named in enumerate(self.tensors):
            place = self.rows[i].data_ptr()
            for name, tensor in named.items():
                if tensor.data_ptr() != place and tensor.numel():
                    raise ValueError(
                        f"GossipGroup: {name} of module {i} must keep the memory that the group gave it, got other "
                        "(by Module.to, half or the like): make a new group after such a change"
                    )
                place += tensor.numel() * self.dtype.itemsize

    def mix(self, weights: GossipWeights, measure: bool) -> tuple[torch.Tensor, ...]:
        """Mix the rows; return both squared norms if `measure`."""
        suited = GossipWeights(*(part.to(self.device) for part in weights))
        suited = suited._replace(values=suited.values.to(self.wide))
        mixing: Any = gossip_mix(self.rows, suited, self.start, measure=measure)
        self.rows[: self.modules].copy_(self.start)
        for named in self.tensors:
            torch.autograd.graph.increment_version(list(named.values()))
        return tuple(mixing[1:]) if measure else ()


class _Neighbours:
    """The ranks of a process group, one module each."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        if not dist.is_initialized():
            raise ValueError(
                "GossipGroup: modules must be a sequence of modules, or torch.distributed must be initialized; got one "
                "module in one process"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def check_alike(self, signature: list[Any]) -> None:
        """Raise ValueError on all ranks unless all hold the same parameters."""
        signatures: list[Any] = [None] * self.size
        dist.all_gather_object(signatures, signature, self.group)
        for rank, other in enumerate(signatures):
            if other != signatures[0]:
                raise ValueError(
                    "GossipGroup: all ranks must hold modules of the same names, shapes and dtypes; those of rank "
                    f"{rank} differ from those of rank 0"
                )

    def fetch(self, weights: GossipWeights, blocks: list[_Block]) -> GossipWeights:
        """Exchange rows with the neighbours; return this rank's weights of its row and of the received rows."""
        pointers, columns, values = weights.row_pointers.cpu(), weights.columns.cpu(), weights.values
        if columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < self.size:
            raise ValueError(f"GossipGroup: columns of weights must be in [0, {self.size}), got {columns.tolist()[:8]}")
        first, last = pointers[self.rank : self.rank + 2].tolist()
        heard = [rank for rank in dict.fromkeys(columns[first:last].tolist()) if rank != self.rank]
        rows = torch.repeat_interleave(pointers.diff())[columns == self.rank]
        hearing = [rank for rank in dict.fromkeys(rows.tolist()) if rank != self.rank]
        works = []
        for tag, block in enumerate(blocks):
            if block.rows.shape[0] < 1 + len(heard):
                block.lay(len(heard))
            operations = [self._message(dist.isend, block.rows[0], rank, tag) for rank in hearing]
            operations += [self._message(dist.irecv, block.rows[1 + i], rank, tag) for i, rank in enumerate(heard)]
            works += dist.batch_isend_irecv(operations) if operations else []
        for work in works:
            work.wait()
        place = {self.rank: 0, **{rank: 1 + i for i, rank in enumerate(heard)}}
        local = torch.tensor([place[rank] for rank in columns[first:last].tolist()], dtype=torch.int64)
        return GossipWeights(torch.tensor([0, last - first]), local, values[first:last])

    def _message(self, way: Any, row: torch.Tensor, rank: int, tag: int) -> dist.P2POp:
        peer = rank if self.group is None else dist.get_global_rank(self.group, rank)
        return dist.P2POp(way, row.view(torch.uint8), peer, self.group, tag)


def _by_dtype(tensors: list[Named]) -> list[list[Named]]:
    dtypes = dict.fromkeys(tensor.dtype for tensor in tensors[0].values())
    return [[{n: t for n, t in named.items() if t.dtype == dtype} for named in tensors] for dtype in dtypes]


def _check_alike(tensors: list[Named], may_be_empty: bool = False) -> None:
    """Raise unless all modules hold dense floating-point tensors of the same names, shapes, dtypes and device."""
    if not tensors or (not tensors[0] and not may_be_empty):
        raise ValueError("GossipGroup: modules must hold at least one module with a parameter, got none")
    for i, named in enumerate(tensors):
        if named.keys() != tensors[0].keys():
            difference = sorted(named.keys() ^ tensors[0].keys())[0]
            raise ValueError(f"GossipGroup: modules must have the same names; {difference} is not in 0 and {i} alike")
        for name, tensor in named.items():
            if nn.parameter.is_lazy(tensor):
                raise ValueError(f"GossipGroup: {name} of module {i} must be initialized, got a lazy one")
            check_floating("GossipGroup", f"{name} of module {i}", tensor)
            like, anchor = tensors[0][name], next(iter(tensors[0].values()))
            if tensor.shape != like.shape or tensor.dtype != like.dtype or tensor.device != anchor.device:
                raise ValueError(
                    f"GossipGroup: {name} of module {i} must be {like.dtype} on {anchor.device} of shape "
                    f"{list(like.shape)}, got {tensor.dtype} on {tensor.device} of shape {list(tensor.shape)}"
                )
    every = [tensor for named in tensors for tensor in named.values()]
    if len({id(tensor) for tensor in every}) != len(every):
        raise ValueError("GossipGroup: modules must not share parameters or buffers, two of them do")
