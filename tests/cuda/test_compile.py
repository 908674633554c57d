"""nvcc compiles every kernel for every architecture, and the library loads beside a torch without CUDA."""

import os
import runpy

import pytest


@pytest.mark.install
@pytest.mark.timeout(1800)  # minutes on two cores, nothing where the build is up to date
def test_everything_compiles_and_loads(cuda_build):
    if not cuda_build.nvcc_available():
        pytest.skip("no nvcc")
    kernels = cuda_build.check(cuda_build.BUILD_DIR)
    architectures = {kernel.architecture for kernel in kernels}
    if not os.environ.get("DMMLKD_CUDA_ARCHITECTURES"):
        assert architectures == {str(number) for number in cuda_build._architectures()[0]}
    for operator in ("pairwise_kl_resident<float, 2>", "orthogonality<__half>", "gossip_mix<double, 2, true>"):
        assert {kernel.architecture for kernel in kernels if kernel.name == operator} == architectures, operator
    cuda_build.refuse_spills(kernels)


def test_setup_can_load_the_build_by_its_path(cuda_build):
    module = runpy.run_path(cuda_build.__file__)
    assert module["nvcc_available"]() == cuda_build.nvcc_available()
    assert callable(module["build_extension"])


def test_objects_are_compiled_once(cuda_build, tmp_path):
    source, output = tmp_path / "input", tmp_path / "output"
    source.write_text("first")
    command = ["sh", "-c", 'for last; do :; done; echo compiled >> "$last"', str(source)]
    compiled = lambda: len(output.read_text().splitlines())  # noqa: E731
    cuda_build._compile(command, output, [source])
    cuda_build._compile(command, output, [source])
    assert compiled() == 1
    source.write_text("second")
    cuda_build._compile(command, output, [source])
    assert compiled() == 2
    cuda_build._compile([*command, "--other"], output, [source])
    assert compiled() == 3
    assert not output.with_name("output.log").read_text()


def test_a_failed_compilation_says_why_and_leaves_no_stamp(cuda_build, tmp_path):
    with pytest.raises(RuntimeError, match="no such header"):
        cuda_build._compile(["sh", "-c", "echo no such header; exit 1"], tmp_path / "output", [])
    assert list(tmp_path.iterdir()) == []


PTXAS = (
    "ptxas info    : Compiling entry function 'void dmmlkd::cuda::sum<float, (int)2>(float const*)' for 'sm_90'\n"
    "ptxas info    : Function properties for sum\n"
    "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
    "ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 512 bytes smem\n"
    "ptxas info    : Compiling entry function 'void dmmlkd::cuda::mean<double>(double const*)' for 'sm_120'\n"
    "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
    "ptxas info    : Used 32 registers, used 1 barriers, 384 bytes cmem[0]\n"
)


def test_what_ptxas_says_is_read(cuda_build, tmp_path):
    log = tmp_path / "log"
    log.write_text(PTXAS)
    sum_, mean = cuda_build._read_log(log)
    assert sum_ == cuda_build.Kernel("sum<float, 2>", "90", 40, 16, 12, 512)
    assert mean == cuda_build.Kernel("mean<double>", "120", 32, 0, 0, 0)


def test_a_kernel_that_spills_is_named(cuda_build, tmp_path):
    log = tmp_path / "log"
    log.write_text(PTXAS)
    kernels = cuda_build._read_log(log)
    with pytest.raises(RuntimeError, match=r"sum<float, 2> on sm_90: 12 bytes spilled, 16 bytes of stack$"):
        cuda_build.refuse_spills(kernels)
    cuda_build.refuse_spills(kernels[1:])


def test_cuda_check_fails_with_one_line_for_a_kernel_that_spills(cuda_build, tmp_path, monkeypatch, capsys):
    log = tmp_path / "log"
    log.write_text(PTXAS)
    monkeypatch.setattr(cuda_build, "check", lambda _: cuda_build._read_log(log))
    monkeypatch.setattr("sys.argv", ["build.py"])
    with pytest.raises(SystemExit, match=r"^cuda-check: kernels must keep .*: sum<float, 2> on sm_90: 12 bytes[^\n]*$"):
        cuda_build.main()
    assert "mean<double>" in capsys.readouterr().out
