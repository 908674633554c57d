"""`dmmlkd data show` shows what a run gives to its devices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dmmlkd_ext import cli
from dmmlkd_ext.experiments.build import build_simulation
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.experiments.overview import describe, draw, survey


def test_it_is_what_the_run_has():
    config = preset("mfeat", "dmml", seed=2)
    overview, simulation = survey(config), build_simulation(config)
    assert np.array_equal(overview.holds, simulation.holds)
    assert np.array_equal(overview.topology.edges, simulation.world.topology.edges)
    assert overview.classes.sum() == len(simulation.dataset.train)
    assert (overview.seen[~overview.holds] == 0).all()


def test_the_table_has_a_line_per_device_and_the_sums(capsys):
    assert cli.main(["data", "show", "mfeat", "--set", "data.num_devices=5", "topology.name=ring", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mfeat: 1280 train, 220 validation, 500 test samples; 10 classes; a sample: fac [216]")
    rows = [line.split() for line in lines if line.split()[0].isdecimal()]
    assert len(rows) == 5
    assert sum(int(row[2]) for row in rows) == 1280
    counts = [sum(int(cell) for cell in row[row.index("|") + 1 :] if cell != ".") for row in rows]
    assert counts == [int(row[2]) for row in rows]
    assert lines[-1] == "graph ring: 5 links; neighbours per device: 2 to 2, mean 2.0"


def test_many_classes_have_numbers_and_a_picture_is_drawn(tmp_path):
    overview = survey(preset("mfeat"))
    many = replace(overview, class_names=tuple("abcdefghijkl"), classes=np.ones((20, 12), dtype=np.int64))
    assert "classes: 0 a, 1 b" in describe(many)
    draw(many, tmp_path / "mfeat.png")
    draw(many, tmp_path / "again.png")
    assert (tmp_path / "mfeat.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["mfeat", "watch"], 2, "names must be one dataset to show, got mfeat, watch"),
        (["mfeat", "--set", "data.partition=natural"], 2, "dmmlkd: "),
        (["mfeat", "--set", "data.no=1"], 2, "set must be like training.rounds=5"),
        (["npz"], 2, "dataset 'npz' needs its option file"),
        (["npz", "--set", "data.options.file=no.npz"], 1, "file must be a file that is there, got 'no.npz'"),
        (["mfeat", "-o", "picture.xyz"], 2, "xyz"),
    ],
)
def test_what_cannot_be_shown_is_one_line(words, code, message, capsys):
    assert cli.main(["data", "show", *words]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
