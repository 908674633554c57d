"""Measures on a GPU, or for a dry run on a CPU: kernels against the bytes that they must move and against plain torch,
and a simulation against the CPU's.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import dmmlkd_ext
from dmmlkd_ext.ops import GossipWeights, orthogonality_difference_reference, pairwise_kl_similarity_reference
from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.wireless.topology import build_topology
from tests.benchmarks.population.workloads import WORKLOADS, build
from tests.cuda.on_device import SKIPPED

PAIRWISE_KL = [(100, 256, 6, 100), (4096, 3, 1000), (100, 32, 2, 10), (10_000, 32, 6, 10)]
# Pairs, samples, features, normalized: of training; by samples; few pairs of many rows; beyond the kernels.
ORTHOGONALITY = [
    (300, 32, 32, True),
    (30_000, 32, 32, True),
    (300, 32, 128, True),
    (2, 4096, 64, True),
    (2, 4096, 512, True),
]
GOSSIP = [(10, 1_000_000), (100, 1_000_000), (1000, 48_000), (10_000, 22_464)]  # devices, parameters
DEVICES = (100, 1000, 10_000)
Run = Callable[[int], object]


class Clock:
    """Medians of seconds, by events on a GPU."""

    def __init__(self, torch_device: torch.device, quick: bool) -> None:
        self.torch_device, self.quick = torch_device, quick

    @property
    def on_gpu(self) -> bool:
        return self.torch_device.type == "cuda"

    def wait(self) -> None:
        """Wait for all that was launched."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Run, sets: int = 1, calls: int = 10) -> float:
        """Time `calls` calls at once, which take turns among `sets` buffers so that no cache serves them."""
        if self.quick:
            return self._timed(lambda: run(0))
        for i in range(max(3, sets)):
            run(i % sets)
        self.wait()
        times: list[float] = []
        end = time.perf_counter() + 0.3
        while len(times) < 5 or (time.perf_counter() < end and len(times) < 300):
            times.append(self._timed(lambda: [run(i % sets) for i in range(calls)]) / calls)
        return statistics.median(times)

    def replayed(self, run: Run, calls: int = 10) -> float | None:
        """Time a CUDA graph of the calls: what is left without the host's share."""
        if not self.on_gpu:
            return None
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(0)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run(0)
        return self.seconds(lambda _: graph.replay(), calls=1) / calls

    def _timed(self, run: Callable[[], object]) -> float:
        if not self.on_gpu:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def copied_bytes_per_s(clock: Clock, scale: int) -> float:
    """Return how many bytes a copy reads and writes per second: the floor of all kernels."""
    source = torch.empty(2**28 // scale, device=clock.torch_device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / clock.seconds(lambda _: target.copy_(source))


def row(operator: str, case: str, bytes_per_s: float, moved: int, seconds: dict[str, float | None]) -> dict[str, Any]:
    """Return a line of the table; the share of the floor is that of the replayed calls, where there are any."""
    floor, best = moved / bytes_per_s, seconds.get("graph") or seconds["ours"]
    others = {f"{name}_us": value * 1e6 if value else None for name, value in seconds.items()}
    line = {"operator": operator, "case": case, **others, "floor_us": floor * 1e6}
    line["times_floor"] = best / floor if best else None
    if seconds.get("torch") and seconds["ours"]:
        line["torch_per_ours"] = seconds["torch"] / seconds["ours"]
    return line


def differentiated(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Run:
    """Return a call of a loss and its gradient, weighted as in training."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    return lambda _: torch.autograd.grad(2.0 * function(*leaves), leaves)


def random(clock: Clock, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(clock.torch_device)


def pairwise_kl_rows(clock: Clock, rate: float, scale: int) -> Iterator[dict[str, Any]]:
    for whole in PAIRWISE_KL:
        shape = (max(1, whole[0] // scale), *whole[1:])
        logits = [random(clock, *shape) for _ in range(3)]
        operator = torch.ops.dmmlkd.pairwise_kl_forward.default

        def fused(i: int, logits: list[torch.Tensor] = logits, operator: Any = operator) -> object:
            return operator(logits[i], None, 1, True)

        seconds = {"ours": clock.seconds(fused, 3), "graph": clock.replayed(fused)}
        yield row("pairwise_kl, loss and gradient", str(shape), rate, 8 * logits[0].numel(), seconds)
        ours, plain = dmmlkd_ext.pairwise_kl_similarity, pairwise_kl_similarity_reference
        seconds = {
            "ours": clock.seconds(differentiated(ours, logits[0])),
            "torch": clock.seconds(differentiated(plain, logits[0])),
        }
        yield row("pairwise_kl, forward and backward", str(shape), rate, 12 * logits[0].numel(), seconds)


def orthogonality_rows(clock: Clock, rate: float, scale: int) -> Iterator[dict[str, Any]]:
    for pairs, samples, features, normalize in ORTHOGONALITY:
        shape = (max(1, pairs // scale), max(4, samples // (scale if pairs == 2 else 1)), features)
        h, s = random(clock, *shape), random(clock, *shape).flip(0) + 0.5
        operator = torch.ops.dmmlkd.orthogonality_forward.default

        def fused(_: int, h: Any = h, s: Any = s, normalize: bool = normalize, operator: Any = operator) -> object:
            return operator(h, s, None, normalize, 2, True, True)

        def ours(h: torch.Tensor, s: torch.Tensor, normalize: bool = normalize) -> torch.Tensor:
            return dmmlkd_ext.orthogonality_difference(h, s, None, normalize)

        def plain(h: torch.Tensor, s: torch.Tensor, normalize: bool = normalize) -> torch.Tensor:
            return orthogonality_difference_reference(h, s, None, normalize)

        case = f"{shape}{', normalized' if normalize else ''}"
        seconds = {"ours": clock.seconds(fused), "graph": clock.replayed(fused)}
        yield row("orthogonality, loss and gradients", case, rate, 16 * h.numel(), seconds)
        seconds = {
            "ours": clock.seconds(differentiated(ours, h, s)),
            "torch": clock.seconds(differentiated(plain, h, s)),
        }
        yield row("orthogonality, forward and backward", case, rate, 16 * h.numel(), seconds)


def mixing_weights(clock: Clock, devices: int) -> GossipWeights:
    topology = build_topology("watts_strogatz", devices, numpy_generator(0, "topology"))
    weights = GossipWeights.metropolis(topology.edges, devices)
    return GossipWeights(*(part.to(clock.torch_device) for part in weights))


def gossip_rows(clock: Clock, rate: float, scale: int) -> Iterator[dict[str, Any]]:
    for devices, parameters in GOSSIP:
        devices, parameters = max(6, devices // scale), parameters // scale
        weights = mixing_weights(clock, devices)
        local, out = random(clock, devices, parameters), random(clock, devices, parameters)
        sparse = torch.sparse_csr_tensor(*weights, size=(devices, devices))
        operator = torch.ops.dmmlkd.gossip_mix_.default
        arguments = local, *weights, out, 0, parameters
        for measure in (False, True):

            def mix(_: int, measure: bool = measure, arguments: Any = arguments, operator: Any = operator) -> object:
                return operator(*arguments, measure)

            seconds = {"ours": clock.seconds(mix), "graph": clock.replayed(mix)}
            if not measure:
                seconds["torch"] = clock.seconds(lambda _, sparse=sparse, local=local: sparse @ local, calls=3)
            name = f"gossip_mix{', with norms' if measure else ''}"
            yield row(name, f"{devices} x {parameters}", rate, (12 if measure else 8) * local.numel(), seconds)


class Findings:
    """Rows and failures, written after each, so that a limit of time costs only what had not been measured."""

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.rows: list[dict[str, Any]] = []
        self.failed: list[str] = []

    def add(self, rows: Iterator[dict[str, Any]], name: str) -> None:
        """Keep what is measured; what fails is named and leaves the rest."""
        try:
            for found in rows:
                print(found, flush=True)
                self.rows.append(found)
                self._write()
        except Exception as error:
            traceback.print_exc()
            self.failed.append(f"{name}: {type(error).__name__}: {error}")
        self._write()

    def _write(self) -> None:
        if self.path:
            found = {**self.about, "rows": self.rows, "failed": self.failed}
            self.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def kernels(clock: Clock, scale: int, findings: Findings) -> None:
    """Every operator at sizes of training and of large populations."""
    rate = copied_bytes_per_s(clock, scale)
    findings.about["copied_bytes_per_s"] = rate
    for measured in (orthogonality_rows, pairwise_kl_rows, gossip_rows):
        findings.add(measured(clock, rate, scale), measured.__name__)


def distance(one: Any, other: Any) -> float:
    """Return the largest relative distance of two simulations' blocks of parameters."""
    worst = 0.0
    for name, block in one.population.blocks.items():
        expected = other.population.blocks[name].start.cpu().double()
        worst = max(worst, float((block.start.cpu().double() - expected).norm() / expected.norm()))
    return worst


def simulation(clock: Clock, scale: int, findings: Findings) -> None:
    """Agreement with the CPU after two rounds, and seconds per round of growing populations."""
    for workload in ("mfeat", "avdigits"):
        findings.add(agreement(clock, workload), f"{workload} against the CPU")
    for devices in dict.fromkeys(max(6, devices // scale) for devices in DEVICES):
        for workload in ("mfeat", "avdigits"):
            findings.add(round_times(clock, workload, devices), f"{workload} of {devices} devices")


def agreement(clock: Clock, workload: str) -> Iterator[dict[str, Any]]:
    there, here = (
        build(WORKLOADS[workload], "all losses", 12, **_on(where))[0] for where in (str(clock.torch_device), "cpu")
    )
    records = [(there.run_round(), here.run_round()) for _ in range(1 if clock.quick else 2)]
    loss = max(abs(a["loss"]["total"] / b["loss"]["total"] - 1) for a, b in records)
    apart = distance(there, here)
    yield {"workload": workload, "devices": 12, "from_cpu": apart, "loss_from_cpu": loss}
    if max(apart, loss) > 1e-4:
        raise AssertionError(f"{max(apart, loss):.2g} from the CPU, where rounding explains 1e-4")


def _on(torch_device: str) -> dict[str, str]:
    return {} if torch_device == "cpu" else {"torch_device": torch_device}


def round_times(clock: Clock, workload: str, devices: int) -> Iterator[dict[str, Any]]:
    simulation, _ = build(WORKLOADS[workload], "all losses", devices, **_on(str(clock.torch_device)))
    times = []
    for _ in range(1 if clock.quick else 4):
        clock.wait()
        began = time.perf_counter()
        simulation.run_round()
        clock.wait()
        times.append(time.perf_counter() - began)
    later = times[1:] or times  # the first round sets things up
    found: dict[str, Any] = {"workload": workload, "devices": devices, "seconds_per_round": statistics.median(later)}
    if clock.on_gpu:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        del simulation
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found


def once(clock: Clock) -> None:
    """Run each kernel once, for a profiler."""
    z, h = random(clock, 4096, 3, 1000), random(clock, 30_000, 32, 32)
    torch.ops.dmmlkd.pairwise_kl_forward(z, None, 1, True)
    torch.ops.dmmlkd.orthogonality_forward(h, h.flip(0), None, True, 2, True, True)
    torch.ops.dmmlkd.orthogonality_forward(*random(clock, 2, 2, 4096, 64), None, True, 2, True, True)
    local = random(clock, 100, 1_000_000)
    torch.ops.dmmlkd.gossip_mix_(local, *mixing_weights(clock, 100), torch.zeros_like(local), 0, 1_000_000, True)
    clock.wait()


def main() -> int:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kernels", "simulation", "once"))
    parser.add_argument("--torch-device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--scale", type=int, default=1, help="divides the sizes, for a dry run")
    parser.add_argument("--write", type=Path, help="a JSON file")
    options = parser.parse_args()
    clock = Clock(options.torch_device, quick=options.scale > 1)
    if options.what == "once":
        once(clock)
        return 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    takes_device = "torch_device" in inspect.signature(build).parameters
    if options.what == "simulation" and clock.on_gpu and not takes_device:
        print("skipped: the simulation of this tree takes no torch device")
        return SKIPPED
    name = torch.cuda.get_device_name() if clock.on_gpu else "cpu"
    findings = Findings(options.write, {"device": name, "build": dmmlkd_ext.build_info()})
    measure = kernels if options.what == "kernels" else simulation
    measure(clock, options.scale, findings)
    print("; ".join(findings.failed) or f"{len(findings.rows)} rows")
    return 1 if findings.failed else 0


if __name__ == "__main__":
    sys.exit(main())
