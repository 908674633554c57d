"""The CUDA operators on two machines: the emulation, which needs no GPU, and a GPU where there is one.

Every test that takes the fixture `kernels` runs on both; on the emulation the threads run in a shuffled order, so
that a kernel that lacks a barrier is wrong.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
SHUFFLED = 2


@pytest.fixture(scope="session")
def cuda_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dmmlkd_cuda_build", CSRC / "cuda" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build_emulation(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles the .cu files as they are against the emulation, and links them with one file of the tests."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the emulation is built with g++ on Linux")

    def run_compiler(*arguments: str) -> None:
        cached = ["ccache"] if shutil.which("ccache") else []  # nothing in the files depends on where they lie
        command = [*cached, "g++", "-std=c++20", "-fPIC", "-fno-strict-aliasing", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def build(main: str, *flags: str, link: Sequence[str] = (), beside: Sequence[Path] = ()) -> Path:
        folder = tmp_path_factory.mktemp(Path(main).stem)
        header = str(CSRC / "emulation" / "cuda_emulation.h")
        warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
        sources = [HERE / main, *sorted(CSRC.glob("*/cuda.cu")), *beside]
        objects = [str(folder / f"{number}.o") for number in range(len(sources))]
        with ThreadPoolExecutor() as pool:
            jobs = [
                pool.submit(run_compiler, *warnings, *flags, "-include", header, "-xc++", "-c", str(source), "-o", out)
                for source, out in zip(sources, objects, strict=True)
            ]
            for job in jobs:
                job.result()
        run_compiler(*flags, *objects, *link, "-o", str(folder / "emulation"))
        return folder / "emulation"

    return build


@pytest.fixture(scope="session")
def emulated_library(build_emulation: Callable[..., Path]) -> None:
    """Compiles and loads `torch.ops.dmmlkd_emulated`."""
    root = Path(torch.__file__).parent
    include = [f"-isystem{root / 'include'}", f"-isystem{root / 'include/torch/csrc/api/include'}"]
    libraries = ["-shared", f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    library = [CSRC / "orthogonality" / "library.cpp", CSRC / "stable" / "tensor.cpp"]
    torch.ops.load_library(build_emulation("emulated_ops.cpp", "-O1", *include, link=libraries, beside=library))


@dataclass
class Kernels:
    """The operators of one machine; tensors are moved to it and results back."""

    device: torch.device

    @property
    def emulated(self) -> bool:
        return self.device.type == "cpu"

    def resize(self, processors: int = 4, max_shared: int = 227 * 1024) -> None:
        """Gives the emulated device another size; a GPU has its own."""
        if self.emulated:
            torch.ops.dmmlkd_emulated.set_device(processors, max_shared, SHUFFLED)

    def ops(self):
        return torch.ops.dmmlkd_emulated if self.emulated else torch.ops.dmmlkd

    def pairwise_kl(self, logits, mask=None, reduction=1, with_gradient=True):
        mask = None if mask is None else mask.to(self.device)
        loss, gradient = self.ops().pairwise_kl_forward(logits.to(self.device), mask, reduction, with_gradient)
        return loss.cpu(), gradient.cpu()

    def pairwise_kl_backward(self, upstream, logits, mask=None, reduction=1):
        mask = None if mask is None else mask.to(self.device)
        arguments = upstream.to(self.device), logits.to(self.device), mask, reduction
        return self.ops().pairwise_kl_backward(*arguments).cpu()

    def orthogonality(self, common, specific, mask=None, normalize=False, reduction=0, wanted=(True, True)):
        mask = None if mask is None else mask.to(self.device)
        features = common.to(self.device), specific.to(self.device)
        results = self.ops().orthogonality_forward(*features, mask, normalize, reduction, *wanted)
        return tuple(result.cpu() for result in results)

    def gossip_mix(self, local, weights, out, begin, end, measure):
        weights = [part.to(self.device) for part in weights]
        target = out.to(self.device)
        norms = self.ops().gossip_mix_(local.to(self.device), *weights, target, begin, end, measure)
        out.copy_(target)
        return norms.cpu()

    def gossip_mix_inplace(self, local, weights, begin, end):
        weights = [part.to(self.device) for part in weights]
        target = local.to(self.device)
        self.ops().gossip_mix_inplace_(target, *weights, begin, end)
        local.copy_(target)


@pytest.fixture(
    params=[
        pytest.param("emulated"),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    if request.param == "cuda":
        request.getfixturevalue("cuda_operators")
        yield Kernels(torch.device("cuda"))
        return
    request.getfixturevalue("emulated_library")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small
    machine = Kernels(torch.device("cpu"))
    machine.resize()
    yield machine
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cuda_operators() -> None:
    """Skips where there is no GPU; fails where there is one that the package was not built for."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    import dmmlkd_ext  # noqa: F401

    assert torch._C._dispatch_has_kernel_for_dispatch_key("dmmlkd::pairwise_kl_forward", "CUDA"), (
        "this machine has a GPU, but dmmlkd_ext was built without its CUDA kernels"
    )
