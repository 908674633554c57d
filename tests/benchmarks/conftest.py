from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.paired import interleave, ratio
from tests.benchmarks.results import FOLDER, Results


def pytest_addoption(parser):
    parser.addoption("--results", action="store_true", help="keep what the benchmarks found")
    parser.addoption("--results-folder", type=Path, default=FOLDER, help="where to keep it")


@pytest.fixture(scope="session")
def results(request):
    """Gather the rows of the session; print their table at its end and keep it if asked."""
    gathered = Results()
    yield gathered
    if not gathered.rows:
        return
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + gathered.table())
        if request.config.getoption("--results"):
            command = " ".join(["python -m pytest", *sys.argv[1:]])
            print(f"kept in {gathered.write(request.config.getoption('--results-folder'), command)}")


@pytest.fixture(autouse=True)
def keep_threads():
    """Leave the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2])
def threads(request):
    """Compute on one thread and on two."""
    if request.param > 1:
        require_free_cores(request.param)
    torch.set_num_threads(request.param)
    return request.param


def require_free_cores(count: int) -> None:
    """Skip unless so many cores are there and idle: beside other work, threads wait for each other, not for memory."""
    if count > (os.cpu_count() or 1):
        pytest.skip("there is no second core")
    square = torch.randn(768, 768)

    def on(threads):
        def product():
            torch.set_num_threads(threads)
            torch.mm(square, square)

        return product

    times = interleave({"one": on(1), "all": on(count)}, least=5, most=5)
    speedup = ratio(times, "one", "all")
    if speedup < 0.8 * count:
        pytest.skip(f"{count} cores are not free: a matrix product on them is {speedup:.2f} times as fast as on one")
