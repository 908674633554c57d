from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.paired import interleave, ratio
from tests.benchmarks.results import FOLDER, Results

SKIPPED = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser):
    parser.addoption("--results", action="store_true", help="keep what the benchmarks found")
    parser.addoption("--results-folder", type=Path, default=FOLDER, help="where to keep it")


@pytest.fixture(scope="session")
def results(request):
    """Gather the rows of the session; print their table at its end and keep it if asked."""
    gathered = Results()
    yield gathered
    gathered.skipped = request.config.stash.get(SKIPPED, {})
    if not gathered.rows:
        return
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + gathered.table())
        if request.config.getoption("--results"):
            command = " ".join(["python -m pytest", *sys.argv[1:]])
            print(f"kept in {gathered.write(request.config.getoption('--results-folder'), command)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep why a benchmark was skipped: its rows are not gone."""
    report = yield
    if report.skipped:
        where = report.longrepr
        item.config.stash.setdefault(SKIPPED, {})[item.nodeid] = where[2] if isinstance(where, tuple) else str(where)
    return report


@pytest.fixture(autouse=True)
def _name_the_test(request):
    """Tell the results which benchmark measures."""
    if "results" in request.fixturenames:
        request.getfixturevalue("results").test = request.node.nodeid


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
