"""Datasets from one's own arrays and files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from dmmlkd_ext import cli
from dmmlkd_ext.data import DataUnavailableError, from_arrays, load_csv, load_dataset, load_npz
from dmmlkd_ext.data.arrays import draw_sides
from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.experiments.inputs import load_data

SAMPLES = 60


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    arm, eye = draw.normal(3.0, 2.0, size=(SAMPLES, 3)), draw.normal(size=(SAMPLES, 2, 12))
    arm[::5] = np.nan
    return {"arm": arm, "eye": eye, "labels": np.arange(SAMPLES) % 3}


def write(folder: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez(folder / "robots.npz", **arrays)
    return str(folder / "robots.npz")


def write_csv(folder: Path, arrays: dict[str, np.ndarray], names: list[str]) -> str:
    with (folder / "robots.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "label"])
        for arm, eye, label in zip(arrays["arm"], arrays["eye"][:, 0, :2], arrays["labels"], strict=True):
            writer.writerow(["" if np.isnan(value) else repr(float(value)) for value in (*arm, *eye)] + [f"c{label}"])
    return str(folder / "robots.csv")


def test_statistics_are_those_of_present_training_samples(arrays, tmp_path):
    data = load_npz(write(tmp_path, arrays))
    here = data.train.features["arm"][data.train.present[:, 0]]
    assert torch.allclose(here.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(here.std(0, correction=0), torch.ones(3), atol=1e-6)
    assert torch.equal(data.train.features["arm"][~data.train.present[:, 0]].abs().sum(), torch.tensor(0.0))
    assert torch.allclose(data.train.features["eye"].mean((0, 2)), torch.zeros(2), atol=1e-6)  # a mean per channel
    absent = sum(int((~part.present[:, 0]).sum()) for part in (data.train, data.validation, data.test))
    assert absent == SAMPLES // 5
    raw = load_npz(write(tmp_path, arrays), standardized=False)
    assert float(raw.test.features["arm"][raw.test.present[:, 0]].mean()) == pytest.approx(3.0, abs=1.0)


def test_test_samples_change_nothing_in_training(arrays):
    sides = np.where(np.arange(SAMPLES) < 40, "train", "test")
    other = arrays["eye"].copy()
    other[40:] = 1e6
    one, two = (from_arrays("x", {"eye": eye}, arrays["labels"], split=sides) for eye in (arrays["eye"], other))
    assert torch.equal(one.train.features["eye"], two.train.features["eye"])
    assert (len(one.train), len(one.validation), len(one.test)) == (40, 0, 20)


def test_the_split_by_fraction_is_by_class_and_no_run_changes_it(arrays, tmp_path):
    file = write(tmp_path, arrays)
    one, two = (load_dataset("npz", seed=seed, file=file) for seed in (0, 1))
    assert torch.equal(one.test.features["eye"], two.test.features["eye"])
    assert torch.bincount(one.test.labels).tolist() == [5, 5, 5]
    again = load_dataset("npz", file=file, split_seed="1")
    assert not torch.equal(one.test.features["eye"], again.test.features["eye"])
    assert (draw_sides(np.zeros(4, dtype=np.int64), 0.0, 0.0) == "train").all()


def test_presence_groups_and_names_come_from_their_arrays(arrays, tmp_path):
    present = np.ones((SAMPLES, 2), dtype=bool)
    present[1, 1] = False
    further = {
        "present": present,
        "groups": np.array(["bob", "", "al"] * 20),
        "split": np.array(["train"] * SAMPLES),
        "class_names": np.array(["cup", "box", "ball"]),
    }
    data = load_npz(write(tmp_path, {**arrays, **further}))
    assert data.train.present[:6].tolist() == [[False, True], [True, False], *[[True, True]] * 3, [False, True]]
    assert data.train.groups[:3].tolist() == [1, -1, 0]
    assert data.class_names == ("cup", "box", "ball")


def test_a_table_gives_what_the_arrays_give(arrays, tmp_path):
    file = write_csv(tmp_path, arrays, ["ax", "ay", "az", "e1", "e2"])
    told = load_dataset("csv", file=file, modalities="arm=a? eye=e1,e2")
    named = load_csv(write_csv(tmp_path, arrays, ["arm.x", "arm.y", "arm.z", "eye.1", "eye.2"]))
    ours = from_arrays("robots", {"arm": arrays["arm"], "eye": arrays["eye"][:, 0, :2]}, arrays["labels"])
    for data in (told, named):
        assert data.class_names == ("c0", "c1", "c2")
        assert torch.equal(data.train.present, ours.train.present)
        assert all(torch.equal(data.test.features[name], ours.test.features[name]) for name in ("arm", "eye"))


def test_a_file_is_trained_from_the_command_line(arrays, tmp_path, capsys):
    options = ["--data.options", "file", write(tmp_path, arrays), "--data.num-devices", "3", "--training.rounds", "2"]
    run = ["run", "dmml-kd", "npz", *options, "--runs", str(tmp_path / "runs"), "--quiet"]
    assert cli.main(run) == 0
    [folder] = (tmp_path / "runs").glob("npz-dmml-kd-*")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    write(tmp_path, arrays | {"eye": arrays["eye"] ** 2})
    assert cli.main(run) == 1  # other data under the same name
    assert "was made from other data" in capsys.readouterr().err


WRONG = {
    "labels must name an array": lambda arrays: arrays.pop("labels"),
    "labels must be whole numbers": lambda arrays: arrays.update(labels=np.full(SAMPLES, 0.5)),
    r"features\['arm'\] must be real numbers \[60": lambda arrays: arrays.update(arm=np.zeros((3, 2))),
    r"features\['word'\] must be real numbers": lambda arrays: arrays.update(word=np.full((SAMPLES, 1), "a")),
    r"features\['eye'\] of sample 7 must be finite": lambda arrays: arrays["eye"].__setitem__((7, 0, 0), np.nan),
    r"features\['eye'\] of sample 0 must be finite": lambda arrays: arrays["eye"].__setitem__((0, 0, 0), np.inf),
    "every sample must have a modality, sample 5": lambda arrays: arrays["eye"].__setitem__(5, np.nan),
    "one training sample": lambda arrays: arrays["arm"].__setitem__(slice(None), np.nan),
    "split must be one of train, validation, test": lambda arrays: arrays.update(split=np.full(SAMPLES, "tset")),
    "present must be bool": lambda arrays: arrays.update(present=np.ones((SAMPLES, 3), dtype=bool)),
    "groups must be numbers or text": lambda arrays: arrays.update(groups=np.zeros((2, 2))),
    "class_names must be 3": lambda arrays: arrays.update(class_names=np.array(["a"])),
}


@pytest.mark.parametrize("message", WRONG)
def test_arrays_that_do_not_fit_are_named(message, arrays, tmp_path):
    WRONG[message](arrays)
    with pytest.raises(ValueError, match=message):
        load_npz(write(tmp_path, arrays))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("label,a.x\n0,1\n", {"label": "kind"}, "label must name a column of .*, which has label, a.x; got 'kind'"),
        ("label,ax\n0,1\n", {}, "modalities must say which columns"),
        ("label,ax\n0,1\n", {"modalities": "arm=b*"}, "modalities must be like"),
        ("label,a.x\n0,one\n", {}, "column a.x of .* must hold numbers"),
        ("label,a.x\n0,1,2\n", {}, "sample 1 must have 2 cells, got 3"),
        ("label,a.x\n", {}, "a line per sample"),
        ("label,a.x\n,1\n1,2\n", {}, "sample 0 has none"),
        ("label,a.x\n0,1\n1,2\n", {"test": 1.5}, "validation and test must be fractions"),
    ],
)
def test_tables_that_do_not_fit_are_named(text, options, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_csv(str(tmp_path / "t.csv"), **options)


def test_a_file_that_is_not_there_and_one_of_another_kind_are_named(tmp_path):
    with pytest.raises(DataUnavailableError, match="file must be a file that is there"):
        load_npz(str(tmp_path / "no.npz"))
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"file must be one of numpy.savez.*bad.npz"):
        load_npz(str(tmp_path / "bad.npz"))


def test_an_option_that_is_needed_and_one_that_is_none_are_named():
    with pytest.raises(ValueError, match="dataset 'npz' needs its option file"):
        load_dataset("npz")
    told = ExperimentConfig(data=DataConfig("watch", options={"seed": 3}))
    with pytest.raises(ValueError, match="seed is not an option of dataset 'watch'"):
        load_data(told)
