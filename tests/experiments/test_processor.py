"""Which processor or GPU simulates: how it is asked for, what is refused, what becomes of a run."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_simulation import build_fake
from test_sweep import make_configs

from dmmlkd_ext import cli
from dmmlkd_ext.experiments import build as world
from dmmlkd_ext.experiments import sweep
from dmmlkd_ext.experiments.config import ExperimentConfig, processor
from dmmlkd_ext.experiments.config.loading import load_config
from dmmlkd_ext.experiments.determinism import deterministic
from dmmlkd_ext.experiments.run import run_experiment, run_name
from dmmlkd_ext.experiments.sweep import run_sweep

ON_GPU = ExperimentConfig(torch_device="cuda")


def install_gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let torch find these GPUs, on which nothing is computed here."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: names[number])
    monkeypatch.setattr(torch.version, "cuda", "13.0" if names else None)
    monkeypatch.setattr(processor, "on_gpu", lambda kind, gpu: processor.nullcontext())


@pytest.mark.parametrize(
    ("asked", "found"), [("cpu", ("cpu", None)), ("cuda", ("cuda", None)), ("cuda:12", ("cuda", 12))]
)
def test_what_is_asked_for(asked: str, found: tuple) -> None:
    assert processor.choose(asked) == found


@pytest.mark.parametrize("asked", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:1:2", "CUDA", "cuda:²"])
def test_what_is_no_processor_is_refused(asked: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"device must be cpu, cuda, cuda:N or auto; got {asked!r}")):
        processor.choose(asked)


def test_auto_is_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpus(monkeypatch)
    assert processor.choose("auto") == ("cpu", None)
    install_gpus(monkeypatch, "one")
    assert processor.choose("auto") == ("cuda", None)


def test_a_gpu_that_is_not_there_is_named_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpus(monkeypatch, "model A", "model B")
    processor.require("cpu")
    processor.require("cuda", 1)
    said = r"device cuda:2 is not there; the GPUs are: cuda:0 \(model A\), cuda:1 \(model B\)$"
    with pytest.raises(processor.GpuMissingError, match=said):
        processor.require("cuda", 2)
    install_gpus(monkeypatch)
    with pytest.raises(processor.GpuMissingError, match=r"device cuda is not there; .* was built without CUDA"):
        processor.require("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(processor.GpuMissingError, match=r"device cuda is not there; .* this torch \(.*\) can use"):
        processor.require("cuda")


def test_it_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_gpus(monkeypatch)
    with pytest.raises(processor.GpuMissingError, match="device cuda is not there"):
        run_experiment(ON_GPU, tmp_path / "runs", build=build_fake)
    with pytest.raises(processor.GpuMissingError, match="device cuda:3 is not there"):
        run_sweep([ON_GPU], tmp_path / "runs", build=build_fake, gpu=3)
    runs = ["--runs", str(tmp_path / "runs"), "--device", "cuda:3"]
    for command in (["run", "dmml", "mfeat"], ["sweep", "--methods", "dmml", "--datasets", "mfeat"]):
        assert cli.main([*command, *runs]) == 1
        assert capsys.readouterr().err.startswith("dmmlkd: device cuda:3 is not there; the GPUs are: none")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [["run", "dmml", "mfeat"], ["sweep"]])
def test_a_wrong_word_is_the_users_error(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--device", "tpu"]) == 2
    assert "device must be cpu, cuda, cuda:N or auto; got 'tpu'" in capsys.readouterr().err
    assert cli.main(["run", "dmml", "mfeat", "--torch-device", "cuda"]) == 2
    assert cli.main(["sweep", "--set", "torch_device=cuda"]) == 2
    assert "set and grid must not change torch_device, which --device gives" in capsys.readouterr().err


def test_the_command_line_sets_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpus(monkeypatch, "model A", "model B")
    monkeypatch.setattr(world, "build_simulation", build_fake)
    assert cli.main(["run", "dmml", "mfeat", "--device", "cuda:1", "--runs", str(tmp_path), "--quiet"]) == 0
    (folder,) = tmp_path.glob("mfeat-dmml-*")
    assert load_config(folder).torch_device == "cuda"
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["gpu"], environment["cuda"]) == ("model A", "13.0")  # which torch calls the current one
    assert cli.main(["run", "dmml", "mfeat", "--device", "auto", "--runs", str(tmp_path), "--quiet"]) == 0
    assert len(list(tmp_path.glob("mfeat-dmml-*"))) == 1  # the number of the GPU does not matter


def test_a_file_of_options_may_ask_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_gpus(monkeypatch, "model A")
    monkeypatch.setattr(world, "build_simulation", build_fake)
    (tmp_path / "options.toml").write_text('method = "dmml"\ndata = "mfeat"\ntorch_device = "cuda"\n')
    for asked, expected in (([], "cuda"), (["--device", "cpu"], "cpu")):
        runs = ["--runs", str(tmp_path / expected), "--quiet"]
        assert cli.main(["run", "--config", str(tmp_path / "options.toml"), *asked, *runs]) == 0
        (folder,) = (tmp_path / expected).glob("mfeat-dmml-*")
        assert load_config(folder).torch_device == expected


def test_info_names_the_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install_gpus(monkeypatch, "model A")
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^gpus +cuda:0 \(model A\)$", shown, re.MULTILINE)


def test_a_gpu_makes_another_run_and_the_cpu_keeps_its_name() -> None:
    config = ExperimentConfig()
    assert run_name(config) != run_name(ON_GPU)
    settings = {name: value for name, value in config.to_dict().items() if name != "torch_device"}
    earlier = dataclasses.make_dataclass("Earlier", ["torch_device", "to_dict"])("cuda", lambda: settings)
    assert config.digest("code") == ExperimentConfig.digest(earlier, "code")
    with pytest.raises(ValueError, match="torch_device must be one of cpu, cuda; got 'cuda:1'"):
        ExperimentConfig(torch_device="cuda:1")


def test_a_configuration_of_a_version_without_gpus_is_read(tmp_path: Path) -> None:
    settings = ExperimentConfig(seed=3).to_dict()
    del settings["torch_device"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert load_config(tmp_path) == ExperimentConfig(seed=3)


def test_another_model_starts_over_and_another_gpu_of_the_model_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(make_configs(13)[0], torch_device="cuda")  # the seed that fails in its second round

    def break_off() -> None:
        with pytest.raises(RuntimeError):
            run_experiment(config, tmp_path, build=build_fake, checkpoint_every=1)

    install_gpus(monkeypatch, "model A")
    break_off()
    break_off()
    assert not caplog.messages
    install_gpus(monkeypatch, "model B")
    break_off()
    assert "starts over: it was begun with another gpu ('model B' for 'model A')" in caplog.messages[0]


def test_a_sweep_places_each_run_on_the_gpu_that_has_the_fewest(tmp_path: Path) -> None:
    started = []
    context = SimpleNamespace(
        Pipe=lambda duplex: (None, SimpleNamespace(close=lambda: None)),
        Process=lambda target, args, name, daemon: SimpleNamespace(start=lambda: started.append(args[4]["gpu"])),
    )
    runs = sweep._Sweep({}, tmp_path, {}, 4, False, [0, 1, 2])
    runs.context = context
    for seed in range(4):
        runs._start(str(seed), dataclasses.replace(ON_GPU, seed=seed))
    assert started == [0, 1, 2, 0]
    del runs.running[1]  # the run on the second GPU has ended
    runs._start("next", ON_GPU)
    runs._start("on the CPU", ExperimentConfig())
    assert started[4:] == [1, None]


@pytest.mark.parametrize(
    ("settings", "workers", "gpus"),
    [({}, 3, [0, 1, 2]), ({"gpu": 1}, 1, [1]), ({"workers": 5}, 5, [0, 1, 2])],
)
def test_a_sweep_uses_the_gpus_at_hand(
    settings: dict, workers: int, gpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Recorded:
        def __init__(self, pending, runs_folder, options, workers, progress, gpus) -> None:
            seen.append((workers, list(gpus)))

        def run(self) -> dict:
            return {}

    install_gpus(monkeypatch, "A", "B", "C")
    monkeypatch.setattr(sweep, "_Sweep", Recorded)
    monkeypatch.setattr(sweep, "available_cores", lambda: 7)
    run_sweep([ON_GPU], tmp_path, **settings)
    run_sweep([ON_GPU, ExperimentConfig()], tmp_path)  # some need cores
    run_sweep([ExperimentConfig()], tmp_path)
    assert seen == [(workers, gpus), (7, [0, 1, 2]), (7, [])]


def test_under_torchrun_each_rank_needs_its_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_gpus(monkeypatch, "A", "B")
    rank = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["run", "dmml", "mfeat", "--device", "cuda"]) == 1
    assert "rank 2: device cuda:2 is not there; the GPUs are: cuda:0 (A), cuda:1 (B)" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["run", "dmml", "mfeat", "--device", "cuda:1"]) == 2
    said = "device must be cuda under torchrun: a rank's GPU is its local number; got cuda:1"
    assert said in capsys.readouterr().err


def test_a_run_computes_in_full_precision_and_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark

    before = settings()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    with deterministic(1):
        assert settings() == (False, False, False)
        assert torch.are_deterministic_algorithms_enabled()
    assert settings() == (True, before[1], True)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
