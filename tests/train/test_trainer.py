"""The whole training: what it learns from, how it stops, and that it goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from i2e_pipeline import cli
from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import Config, LossConfig
from i2e_pipeline.core.errors import ExitCode
from i2e_pipeline.evaluate.in_training import held_out
from i2e_pipeline.train import checkpoint
from i2e_pipeline.train import trainer as trainer_module
from i2e_pipeline.train.encoders import build
from i2e_pipeline.train.export import ExportError, export_checkpoint
from i2e_pipeline.train.journal import BadLoss, rows
from i2e_pipeline.train.on_ranks import OnRanks
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.recipes import Recipe
from i2e_pipeline.train.step_time import operations
from i2e_pipeline.train.trainer import Interrupted, TrainError, _Stop, _Training, train
from tests.train import ranks
from tests.train.no_data import DEVICE, nothing_is_read
from tests.train.small_dataset import image_row, write_dataset

IMAGES, CLASSES = 96, 12
FOLDERS = ("at once", "late")
"""Trainings that read what a step came to at once, and when the next one is under way, as on a card."""
READ = ("kind", "step", "losses", "norm", "learning_rate", "figures")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [image_row(i, labels=[(i % CLASSES, 0.9)]) for i in range(IMAGES)]
    return write_dataset(tmp_path_factory.mktemp("i2e") / "i2e", rows, classes=CLASSES)


@pytest.fixture(scope="module")
def settings(dataset: str, models: Callable[[str], str]) -> Callable[..., Config]:
    """The config of a small training, with overrides."""

    def make(folder: Path, *overrides: str) -> Config:
        return configuration.from_tree(configuration.merge(tree(dataset, models("vit"), folder), overrides), "a test")

    return make


def tree(dataset: str, model: str, folder: Path) -> dict[str, Any]:
    return {
        "output": str(folder),
        "train": {
            "dataset": dataset, "folder": str(folder), "steps": 6, "device": "cpu", "threads": 1, "log_every": 1,
            "encoder": {"model": model},
            "data": {"batch_size": 16, "workers": 0, "hold_out_entities": 0.3, "hold_out_images": 0.05},
            "head": {"sample": 0.5, "sample_min": 2},
        },
    }  # fmt: skip


def run(config: Config, **how: Any) -> dict[str, Any]:
    found = pretrain(config, **how)
    assert found is not None
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = checkpoint.latest(folder)
    assert last is not None
    return load_file(last / "towers.safetensors")


def head(folder: Path) -> torch.Tensor:
    """Class vectors by class index."""
    last = checkpoint.latest(folder)
    assert last is not None
    parts = [load_file(f) for f in sorted(last.glob("head-*"))]
    order = torch.cat([p["class_C"] for p in parts]).argsort()
    return torch.cat([p["weights_CD"] for p in parts])[order]


def far(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


@pytest.mark.parametrize("recipe", ["multi_task", "supervised", "contrastive", "clip_alt_text", "clip_entity_text"])
def test_every_recipe_lowers_its_loss_and_leaves_an_export(
    settings: Callable[..., Config], tmp_path: Path, recipe: str
) -> None:
    import open_clip

    found = run(settings(tmp_path, f"train.recipe={recipe}", "train.steps=40", "train.head.sample=1"))
    losses = [r["losses"]["loss"] for r in rows(tmp_path) if r["kind"] == "step"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert found["before"].keys() == found["after"].keys() >= {"mAP", "knn"}
    assert (tmp_path / "loss.png").stat().st_size > 5000
    model = open_clip.create_model(f"local-dir:{found['export']}/open_clip")
    trained = weights(tmp_path)
    assert torch.equal(model.visual.conv1.weight, trained["model.visual.conv1.weight"])


def test_a_training_cut_off_goes_on_as_if_nothing_had_happened(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: moments, running mean, head, schedule or place in the data that start anew."""
    ema = ("train.optimizer.ema=0.9", "train.checkpoint_every=3")
    run(settings(tmp_path / "whole", *ema))
    run(settings(tmp_path / "cut", *ema))
    checkpoint.drop_beyond(tmp_path / "cut", 3)
    (tmp_path / "cut" / "outcome.json").unlink()
    run(settings(tmp_path / "cut", *ema))
    assert far(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    assert torch.equal(head(tmp_path / "whole"), head(tmp_path / "cut"))
    whole, cut = (
        [(r["step"], r["losses"]) for r in rows(tmp_path / n) if r["kind"] == "step"] for n in ("whole", "cut")
    )
    assert whole == cut


def test_a_checkpoint_is_what_the_training_was_when_it_began_to_be_written(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: weights, moments, means or rows of a later step; a training that waits for its disk."""
    every = ("train.optimizer.ema=0.9", "train.checkpoint_every=2", "train.keep_checkpoints=9")
    run(settings(tmp_path / "waits", *every, "train.save_in_background=false"))
    write = checkpoint._write
    begun: list[tuple[str, int]] = []

    def slow(path: Path, *how: Any) -> None:
        begun.append((path.parent.name, len(rows(tmp_path / "goes on"))))
        time.sleep(1)
        write(path, *how)

    monkeypatch.setattr(checkpoint, "_write", slow)
    run(settings(tmp_path / "goes on", *every))
    assert checkpoint.steps(tmp_path / "goes on") == checkpoint.steps(tmp_path / "waits") == [2, 4, 6]
    steps_then = {rows_then for folder, rows_then in begun if folder.startswith(".step-00000002")}
    assert max(steps_then) > min(steps_then), "no step was done while the first checkpoint was written"
    for step in (2, 4, 6):
        one, other = (tmp_path / f / "checkpoints" / checkpoint.name(step) for f in ("waits", "goes on"))
        files = sorted(p.name for p in one.glob("*.safetensors"))
        assert files == sorted(p.name for p in other.glob("*.safetensors"))
        assert len(files) == 4
        for file in files:
            a, b = load_file(one / file), load_file(other / file)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)
        told = [json.loads((c / "state.json").read_text()) for c in (one, other)]
        assert told[0]["position"] == told[1]["position"] == 16 * step


def test_a_disk_that_is_full_ends_the_training_with_the_reason(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a thread that dies, and a training that goes on for days without a checkpoint."""
    write = checkpoint._write

    def full(path: Path, *how: Any) -> None:
        if ".step-00000004" in str(path):
            raise OSError(28, "No space left on device")
        write(path, *how)

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(checkpoint.CheckpointError, match=r"step-00000004 could not be saved: .*No space left"):
        run(settings(tmp_path, "train.checkpoint_every=2", "train.steps=40"))
    assert checkpoint.steps(tmp_path) == [2]
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".")]
    assert not [t for t in threading.enumerate() if t.name == "checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "size", "late"),
    [
        (signal.SIGINT, 1, False),
        (signal.SIGTERM, 2, False),
        (signal.SIGTERM, 2, True),
        pytest.param(signal.SIGINT, 2, False, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, 1, False, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_what_was_trained_and_says_how_to_go_on(
    settings: Callable[..., Config], tmp_path: Path, sign: signal.Signals, size: int, late: bool
) -> None:
    """Catches: an interruption that loses the steps since the last checkpoint, or a state in the middle of one; a
    scheduler's signal that Ctrl-C's way out does not know."""
    overrides = ("train.steps=40", "train.checkpoint_every=1000")
    place, seen = tmp_path / "cut.yaml", tmp_path / "seen"
    place.write_text(configuration.dump(settings(tmp_path / "cut", *overrides)))
    seen.mkdir()
    stopped = ranks.start(place, size, seen, late=late)
    ranks.send(sign, stopped, seen, steps=3)
    for rank in stopped:
        rank.process.join(120)
    said = stopped[0].said.read_text()
    assert {rank.process.exitcode for rank in stopped} == {130}, said
    (step,) = checkpoint.steps(tmp_path / "cut")
    assert 3 <= step < 40
    assert f"i2e: interrupted after step {step} of 40, which is saved in {tmp_path}/cut/checkpoints/" in said
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    ranks.finish(ranks.start(place, 1))
    run(settings(tmp_path / "whole", *overrides))
    assert far(weights(tmp_path / "whole"), weights(tmp_path / "cut")) < (1e-3 if size > 1 else 1e-9)


@pytest.mark.slow
def test_a_second_training_in_the_folder_is_refused_and_the_first_goes_on(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    """Catches: two trainings that drop each other's checkpoints and journal rows, of which one ends with the other's
    figures; the ranks of the second that wait for a rank 0 that was refused."""
    place, seen = tmp_path / "one.yaml", tmp_path / "seen"
    # More steps than the first may do while the second starts, however slow that is.
    place.write_text(configuration.dump(settings(tmp_path / "one", "train.steps=100000", "train.checkpoint_every=50")))
    seen.mkdir()
    first = ranks.start(place, 1, seen)
    ranks.send(signal.SIGCONT, first, seen, steps=2)
    second = ranks.start(place, 2)
    for rank in second:
        rank.process.join(240)
    said = second[0].said.read_text()
    assert f"{tmp_path}/one is being written by process {first[0].process.pid} on " in said
    assert {rank.process.exitcode for rank in second} == {ExitCode.MISTAKE}, said
    ranks.send(signal.SIGTERM, first, seen, steps=len(ranks.ids_by_step(seen)) + 5)
    first[0].process.join(120)
    done = [row["step"] for row in rows(tmp_path / "one") if row["kind"] == "step"]
    assert done == list(range(1, len(done) + 1))
    assert checkpoint.steps(tmp_path / "one")[-1] == len(done)
    assert not (tmp_path / "one" / "_lock").exists()


@pytest.mark.slow
def test_a_training_whose_folder_another_one_took_saves_nothing_there(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    """Catches: a machine that was asleep for an hour, whose training writes over that of its successor."""
    place, seen = tmp_path / "one.yaml", tmp_path / "seen"
    place.write_text(configuration.dump(settings(tmp_path / "one", "train.steps=4000", "train.checkpoint_every=20")))
    seen.mkdir()
    first = ranks.start(place, 1, seen)
    ranks.send(signal.SIGCONT, first, seen, steps=2)
    (tmp_path / "one" / "_lock").write_text(json.dumps({"host": "elsewhere", "process": 7, "beat": 1e9}))
    saved = checkpoint.steps(tmp_path / "one")
    first[0].process.join(120)
    said = first[0].said.read_text()
    assert first[0].process.exitcode not in (0, None), said
    assert "_lock is somebody else's now" in said
    assert len(checkpoint.steps(tmp_path / "one")) <= len(saved) + 1  # one that was under way
    assert json.loads((tmp_path / "one" / "_lock").read_text())["host"] == "elsewhere"


@pytest.mark.slow
def test_the_tasks_of_srun_are_the_ranks(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: `srun i2e train`, whose tasks each train alone in one folder."""
    place = tmp_path / "one.yaml"
    place.write_text(configuration.dump(settings(tmp_path / "one", "train.steps=3")))
    said = ranks.finish(ranks.start(place, 2, slurm=True))
    assert "on 2 ranks (cpu)" in said
    assert said.count("goes on from") == 0
    assert rows(tmp_path / "one")[0]["ranks"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_after_kill_9_the_samples_that_are_left_come_on_any_number_of_ranks(
    settings: Callable[..., Config], tmp_path: Path, before: int, after: int
) -> None:
    def ids(name: str) -> Path:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        return tmp_path / name

    def file(folder: str) -> Path:
        place = tmp_path / f"{folder}.yaml"
        config = settings(tmp_path / folder, "train.steps=12", "train.checkpoint_every=2", "train.data.batch_size=16")
        place.write_text(configuration.dump(config))
        return place

    ranks.finish(ranks.start(file("whole"), 1, ids("ids whole")))
    killed = ranks.start(file("cut"), before, ids("ids before"))
    ranks.kill(killed, ids("ids before"), steps=5)
    saved = checkpoint.steps(tmp_path / "cut")
    ranks.finish(ranks.start(file("cut"), after, ids("ids after")))

    whole, left = (ranks.ids_by_step(tmp_path / name) for name in ("ids whole", "ids after"))
    first = saved[-1] if saved else 0
    assert sorted(left) == list(range(first, 12))
    assert left == {step: found for step, found in whole.items() if step >= first}
    position = checkpoint.load(checkpoint.latest(tmp_path / "cut")).state.position  # type: ignore[arg-type]
    assert position == 12 * 16
    assert far(weights(tmp_path / "whole"), weights(tmp_path / "cut")) < 1e-3


@pytest.mark.slow
def test_after_sigterm_one_and_three_ranks_go_on_with_exactly_what_is_left(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    """Catches: a job that is moved to other machines and trains on samples twice, or never, or not on its own save."""

    def file(folder: str) -> Path:
        (tmp_path / f"ids {folder}").mkdir()
        place = tmp_path / f"{folder}.yaml"
        overrides = ("train.steps=9", "train.checkpoint_every=1000", "train.data.batch_size=24")
        place.write_text(configuration.dump(settings(tmp_path / folder, *overrides)))
        return place

    ranks.finish(ranks.start(file("whole"), 1, tmp_path / "ids whole"))
    whole = ranks.ids_by_step(tmp_path / "ids whole")
    cut = ranks.start(file("cut"), 2, tmp_path / "ids cut")
    ranks.send(signal.SIGTERM, cut, tmp_path / "ids cut", steps=3)
    for rank in cut:
        rank.process.join(120)
    (saved,) = checkpoint.steps(tmp_path / "cut")
    for size in (1, 3):
        shutil.copytree(tmp_path / "cut", tmp_path / f"on-{size}")
        said = ranks.finish(ranks.start(file(f"on-{size}"), size, tmp_path / f"ids on-{size}"))
        assert f"step-{saved:08d}, {saved} of 9 steps done" in said
        left = ranks.ids_by_step(tmp_path / f"ids on-{size}")
        assert left == {step: found for step, found in whole.items() if step >= saved}
        assert far(weights(tmp_path / "whole"), weights(tmp_path / f"on-{size}")) < 1e-3


def test_a_checkpoint_is_due_after_some_minutes_too(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: steps of a minute each, of which a kill loses a thousand."""
    run(settings(tmp_path, "train.checkpoint_minutes=1e-9", "train.keep_checkpoints=9"))
    assert checkpoint.steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_any_checkpoint_is_exported_and_evaluated_by_name(
    settings: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a best checkpoint that is kept and that no command can use."""
    import open_clip

    folder = tmp_path / "it's 1@2"
    run(settings(folder, "train.checkpoint_every=2", "train.keep_checkpoints=9", "train.optimizer.ema=0.5"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["export-model", str(folder), "--checkpoint", "4"])
    assert ended.value.code == 0
    place = Path(capsys.readouterr().out.strip())
    assert place == folder / "exports" / "step-00000004"
    model = open_clip.create_model(f"local-dir:{place}/open_clip").state_dict()
    mean = load_file(folder / "checkpoints" / "step-00000004" / "ema.safetensors")
    assert torch.equal(model["visual.conv1.weight"], mean["model.visual.conv1.weight"])
    with pytest.raises(SystemExit) as ended:
        cli.main(["export-model", str(folder), "--checkpoint", "5"])
    assert ended.value.code == ExitCode.MISTAKE
    assert "has no checkpoint '5': it has those of steps 2, 4, 6" in capsys.readouterr().err

    colours = tmp_path / "colours"
    for n, colour in enumerate(("red", "blue")):
        (colours / colour).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (255 * (n == 0), 40 * i, 255 * (n == 1))).save(colours / colour / f"{i}.png")
    models = [f"--model=train:{folder}@4", f"--model=last=train:{folder}@latest"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", *models, f"--data=c={colours}", "--suite=gpr", "--set", f"output={tmp_path}/out"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert "it's 1 2 4" in out
    assert "last" in out

    # A training that begins anew has other checkpoints of the same steps.
    run(settings(folder, "train.checkpoint_every=2", "train.keep_checkpoints=9", "train.seed=1"), restart=True)
    with pytest.raises(SystemExit):
        cli.main(["export-model", str(folder), "--checkpoint", "4"])
    again = load_file(folder / "checkpoints" / "step-00000004" / "towers.safetensors")
    model = open_clip.create_model(f"local-dir:{place}/open_clip").state_dict()
    assert torch.equal(model["visual.conv1.weight"], again["model.visual.conv1.weight"])


def test_an_evaluation_writes_nothing_into_the_folder_of_a_training(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: --model train:RUN of another user's training, or of one in a store, which ends with "permission denied"
    after the checkpoint was read; figures whose model is a temporary folder that nobody has."""
    folder = tmp_path / "lr=0.1@night"
    run(settings(folder, "train.checkpoint_every=3", "train.keep_checkpoints=9"))
    colours = tmp_path / "colours"
    for n, colour in enumerate(("red", "blue")):
        (colours / colour).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (255 * (n == 0), 40 * i, 255 * (n == 1))).save(colours / colour / f"{i}.png")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def content() -> dict[str, tuple[int, int]]:
        return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in (folder, *folder.rglob("*"))}

    before = content()
    read_only = [f for f in (folder, *folder.rglob("*")) if f.is_dir()]
    for place in read_only:
        place.chmod(0o555)  # root may write all the same, and is then found out by what changed
    try:
        models = [f"--model=train:{folder}@3", f"--model=train:{folder}"]
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", *models, f"--data=c={colours}", "--suite=gpr", "--set", f"output={tmp_path}/out"])
    finally:
        for place in read_only:
            place.chmod(0o755)
    assert ended.value.code == 0
    assert content() == before
    assert not [f for f in scratch.rglob("*") if f.is_file() and f.suffix == ".safetensors"]
    told = json.loads((tmp_path / "out" / "evaluation" / "results.json").read_text())["models"]
    assert [(m["label"], m["spec"]) for m in told] == [
        ("lr 0.1 night 3", f"train:{folder}@3"),
        ("lr 0.1 night", f"train:{folder}"),
    ]


@pytest.mark.parametrize(
    ("lies", "is_file", "says"),
    [
        ("", True, "train.folder: .*/run: .*/run is a file: name a folder"),
        ("checkpoints", True, "a file is where a folder is wanted: move it"),
        ("tensorboard", True, "/run/tensorboard: a file is where a folder is wanted: move it"),
        ("journal.jsonl", False, "/run/journal.jsonl is a folder, and a file is wanted there: move it"),
    ],
)
def test_what_lies_in_the_way_of_a_training_is_said_and_left(
    lies: str, is_file: bool, says: str, settings: Callable[..., Config], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Catches: a traceback, with the code of a failed run, where a file is in a folder's place."""
    place = tmp_path / "run" / lies
    place.parent.mkdir(parents=True, exist_ok=True)
    if is_file:
        place.write_text("mine")
    else:
        place.mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings(tmp_path / "run", f"output={tmp_path}/out").model_dump(mode="json")))
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--config", str(config)])
    assert ended.value.code == ExitCode.MISTAKE
    said = capsys.readouterr().err
    assert re.search(says, said), said
    assert "Traceback" not in said
    assert not is_file or place.read_text() == "mine"


def test_an_export_replaces_nothing_but_an_export(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: `i2e export-model RUN --to ~/models`, after which ~/models holds the export and nothing else."""
    run(settings(tmp_path / "run"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for place, says in (("mine", "no export wrote it"), ("mine/notes.txt", "is a file: name a folder")):
        with pytest.raises(ExportError, match=says):
            export_checkpoint(tmp_path / "run", "latest", tmp_path / place)
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    for _ in range(2):
        export_checkpoint(tmp_path / "run", "latest", tmp_path / "new")
    assert (tmp_path / "new" / "open_clip" / "open_clip_config.json").is_file()


@pytest.mark.parametrize("odd", ["lang=en/split=7", "ü ✓ it's #1", "run@v2/a[1]{b,c}"])
def test_dataset_model_and_training_may_lie_anywhere(
    odd: str, models: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a setting that is cut at its second =, a model's folder cut at an @, a glob in the name of a folder."""
    place = tmp_path / odd
    data = write_dataset(place / "i2e", [image_row(i, labels=[(i % 4, 0.9)]) for i in range(48)])
    shutil.copytree(models("vit").removeprefix("local-dir:"), place / "model@2")
    shared = ["train.steps=2", "train.data.batch_size=8", "train.data.workers=0", "train.threads=1", "train.device=cpu"]
    first = [f"train.folder={place}/first@2", f"train.encoder.model=local-dir:{place}/model@2@folder"]
    then = [f"train.folder={place}/then", f"train.encoder.model=local-dir:{place}/model@2@random",
            f"train.start_from={place}/first@2@latest"]  # fmt: skip
    for settings_of in (first, then):
        options = [f"output={tmp_path}/out", f"train.dataset={data}", *shared, *settings_of]
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *(f"--set={one}" for one in options)])
        assert ended.value.code == 0, capsys.readouterr().err
    assert checkpoint.steps(place / "first@2") == checkpoint.steps(place / "then") == [2]


def test_a_folder_whose_own_name_ends_like_a_checkpoint_says_how_it_is_named(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    run(settings(tmp_path / "run@6"))
    with pytest.raises(checkpoint.CheckpointError, match=r"/run does not exist: .*\. The folder .*/run@6/$"):
        checkpoint.find(tmp_path / "run", "6")
    found = checkpoint.find(f"{tmp_path}/run@6/", "latest")
    assert Path(found).name == "step-00000006"


def test_the_journal_says_what_the_time_of_a_step_went_into(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: a share of the peak that counts micro-batches once, or another time than the images a second do."""
    run(settings(tmp_path, "train.peak_tflops=0.25", "train.accumulate=2", "train.recipe=supervised"))
    steps = [row for row in rows(tmp_path) if row["kind"] == "step"]
    towers = build(settings(tmp_path).train.encoder, LossConfig(), 0, uses_text=False)
    of_peak = operations(towers, uses_text=False).per_image / 0.25e12
    for row in steps:
        assert set(row["time_shares"]) == {"data", "towers", "losses", "backward", "update", "rest"}
        assert sum(row["time_shares"].values()) == pytest.approx(1, abs=0.02)
        assert row["mfu"] == pytest.approx(row["images_per_second"] * of_peak, rel=0.05, abs=1e-4)
        assert row["mfu"] > 0
    run(settings(tmp_path / "cpu"))
    assert not [row for row in rows(tmp_path / "cpu") if "mfu" in row]


@pytest.mark.slow
def test_ranks_parts_and_shards_of_the_towers_give_the_same_weights(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    """Catches: gradients summed instead of averaged, over ranks or over micro-batches; a head that counts ranks twice.

    All classes where micro-batches differ: a sampled head compares with the classes of one, and so does a contrastive
    loss that does not share its negatives. Sums of other orders differ by 1.3e-4 on some processors.
    """
    run(settings(tmp_path / "one"))
    in_parts = ("train.head.sample=1", "train.loss.shared_negatives=true")
    run(settings(tmp_path / "one of all", *in_parts))
    run(settings(tmp_path / "shared", *in_parts, "train.accumulate=4"))
    assert far(weights(tmp_path / "one of all"), weights(tmp_path / "shared")) < 3e-4
    assert [r["losses"]["contrastive"] for r in rows(tmp_path / "shared") if r["kind"] == "step"] == [
        pytest.approx(r["losses"]["contrastive"], rel=1e-3)
        for r in rows(tmp_path / "one of all") if r["kind"] == "step"
    ]  # fmt: skip
    supervised = ("train.recipe=supervised", "train.head.sample=1")
    run(settings(tmp_path / "one supervised", *supervised))
    run(settings(tmp_path / "parts", *supervised, "train.accumulate=4"))
    assert far(weights(tmp_path / "one supervised"), weights(tmp_path / "parts")) < 3e-4
    assert torch.allclose(head(tmp_path / "one supervised"), head(tmp_path / "parts"), atol=1e-3)

    started = {}
    for name in ("ddp", "fsdp", "hsdp", "ddp shared", "fsdp shared"):
        place, how = tmp_path / f"{name}.yaml", name.partition(" ")[0]
        cut = (*in_parts, "train.accumulate=2") if "shared" in name else ()
        place.write_text(configuration.dump(settings(tmp_path / name, f"train.strategy={how}", *cut)))
        started[name] = (
            ranks.start(place, 4, machines=2) if name == "hsdp" else ranks.start(place, 2, late=how == "fsdp")
        )
    for name, processes in started.items():
        ranks.finish(processes)
        if "shared" in name:
            assert far(weights(tmp_path / "one of all"), weights(tmp_path / name)) < 1e-3, name
            continue
        assert far(weights(tmp_path / "one"), weights(tmp_path / name)) < 1e-3, name
        assert torch.allclose(head(tmp_path / "one"), head(tmp_path / name), atol=1e-2), name
        one, several = (rows(tmp_path / n) for n in ("one", name))
        assert [r["losses"]["loss"] for r in several if r["kind"] == "step"] == [
            pytest.approx(r["losses"]["loss"], rel=1e-2) for r in one if r["kind"] == "step"
        ]
        assert [r["figures"] for r in several if r["kind"] == "evaluation"] == [
            {k: pytest.approx(v, abs=0.02) for k, v in r["figures"].items()} for r in one if r["kind"] == "evaluation"
        ]


def test_a_loss_that_is_no_number_stops_with_step_images_and_state(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    config = settings(tmp_path, "train.optimizer.learning_rate=1e30", "train.optimizer.clip_norm=null")
    with pytest.raises(BadLoss, match=r"step \d+: .*(nan|inf).* images: [0-9a-f]{32}.*step-0000") as raised:
        run(config)
    (noted,) = tmp_path.glob("bad-step-*.json")
    told = json.loads(noted.read_text())
    assert len(told["ranks"][0]["image_ids"]) == 16
    saved = checkpoint.latest(tmp_path)
    assert saved is not None
    assert str(saved) in str(raised.value)
    assert checkpoint.load(saved).state.step == told["step"] - 1


def test_a_host_that_reads_each_step_late_trains_the_same(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a mean of the weights that is a step behind, figures or a checkpoint of a step that was not read yet, a
    journal that lacks the last step. On a card the host is late."""
    often = ("train.optimizer.ema=0.9", "train.checkpoint_every=2", "train.evaluate_every=3")
    run(settings(tmp_path / "at once", *often))
    monkeypatch.setattr(_Training, "_reads_at_once", False)
    run(settings(tmp_path / "late", *often))
    for name in ("towers", "ema", "optimizer"):
        at_once, late = (load_file(tmp_path / f / "checkpoints/step-00000006" / f"{name}.safetensors") for f in FOLDERS)
        assert far(at_once, late) == 0
    assert torch.equal(*(head(tmp_path / f) for f in FOLDERS))
    told = [[{k: r.get(k) for k in READ} for r in rows(tmp_path / f)] for f in FOLDERS]
    assert told[0] == told[1]


@pytest.mark.parametrize("recipe", ["multi_task", "supervised", "contrastive"])
def test_a_step_asks_the_device_for_nothing_but_the_numbers_of_the_one_before(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """Catches: a host that waits for the device before the update of each step, or anywhere else in it."""
    begun: list[int] = []
    read: list[int] = []

    def on_host(world: World, x: torch.Tensor) -> Callable[[], list[float]]:
        def numbers(step: int = len(begun)) -> list[float]:
            read.append(step)
            return [0.0] * len(x)

        return numbers

    monkeypatch.setattr(World, "on_host", on_host)
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
    given = settings(tmp_path, f"train.recipe={recipe}", "train.optimizer.ema=0.9", "train.accumulate=2")
    training = _Training(given, World(device=DEVICE), lambda *_: {})
    batches: Any = iter(training.loader)
    with contextlib.closing(batches), nothing_is_read():
        for step in range(1, 5):
            begun.append(step)
            training._step(batches, _Stop())
            assert read == begun[:-1]


def make_bad(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Losses of these steps, counted from 0, are no numbers."""
    losses = Recipe.losses

    def bad(self, encoded, batch, head, world, step, contrastive):  # type: ignore[no-untyped-def]
        found = losses(self, encoded, batch, head, world, step, contrastive)
        return {n: v * float("nan") for n, v in found.items()} if step in steps else found

    monkeypatch.setattr(Recipe, "losses", bad)


def test_a_bad_step_that_is_read_late_has_touched_nothing_and_nor_has_the_next(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: weight decay, moments, class vectors or a mean that moved in a step without a gradient; a state "before
    the bad step" that is the one after it."""
    make_bad(monkeypatch, 2, 4)
    for folder in FOLDERS:
        monkeypatch.setattr(_Training, "_reads_at_once", folder == "at once")
        with pytest.raises(BadLoss, match="step 5: "):
            run(settings(tmp_path / folder, "train.skip_bad_steps=1", "train.optimizer.ema=0.9"))
        assert checkpoint.steps(tmp_path / folder) == [4]
    for name in ("towers", "ema", "optimizer"):
        at_once, late = (load_file(tmp_path / f / "checkpoints/step-00000004" / f"{name}.safetensors") for f in FOLDERS)
        assert far(at_once, late) == 0
    assert torch.equal(*(head(tmp_path / f) for f in FOLDERS))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("allowed", [2, 1])
def test_a_bad_step_or_two_are_passed_over_and_one_more_stops(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, late: bool
) -> None:
    """Catches: a month's training that one batch ends; one that goes on for ever without learning; a bad gradient that
    reaches the weights, the head or the optimiser."""
    if late:
        monkeypatch.setattr(_Training, "_reads_at_once", False)
    make_bad(monkeypatch, 2, 4)
    config = settings(tmp_path, f"train.skip_bad_steps={allowed}", "train.checkpoint_every=3")
    if allowed == 1:
        with pytest.raises(BadLoss, match=r"step 5: .*train\.skip_bad_steps passes it over"):
            run(config)
        saved = tmp_path / "checkpoints" / "step-00000004"
        assert checkpoint.latest(tmp_path) == saved
        assert checkpoint.load(saved).state.position == 4 * 16
        return
    found = run(config)
    assert found["bad_steps"] == 2
    assert found["skipped"] == {}
    assert sorted(p.name for p in tmp_path.glob("bad-step-*")) == ["bad-step-00000003.json", "bad-step-00000005.json"]
    assert [row["step"] for row in rows(tmp_path) if row["kind"] == "step"] == [1, 2, 4, 6]
    assert all(torch.isfinite(x).all() for x in [*weights(tmp_path).values(), head(tmp_path)])
    assert checkpoint.load(tmp_path / "checkpoints" / "step-00000003").state.counts == {"bad steps": 1}


def test_corrupt_images_are_counted_and_passed_over(models: Callable[[str], str], tmp_path: Path) -> None:
    broken = {"bytes": b"no image"}
    some = [image_row(i, labels=[(i % CLASSES, 0.9)], **(broken if i % 8 == 3 else {})) for i in range(64)]
    dataset = write_dataset(tmp_path / "i2e", some, classes=CLASSES)
    found = run(configuration.from_tree(tree(dataset, models("vit"), tmp_path / "run"), "a test"))
    assert found["steps"] == 6
    assert set(found["skipped"]) == {"not_an_image"}
    assert found["skipped"]["not_an_image"] >= 3


def test_a_dataset_that_grew_is_gone_on_with_and_says_so(
    models: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A class index larger than any of the checkpoint: the head gets rows for the new entities."""
    for classes in (CLASSES, CLASSES + 2):
        some = [image_row(i, labels=[(i % classes, 0.9)]) for i in range(80)]
        dataset = write_dataset(tmp_path / f"{classes}" / "i2e", some, classes=classes)
        settings = configuration.merge(tree(dataset, models("vit"), tmp_path / "run"), ["train.checkpoint_every=4"])
        pretrain(configuration.from_tree(settings, "a test"))
        if classes == CLASSES:
            checkpoint.drop_beyond(tmp_path / "run", 4)
            before = head(tmp_path / "run")
    assert any("goes on from" in line and "4 of 6" in line for line in caplog.messages)
    assert any(f"{CLASSES} classes from the checkpoint" in line and "2 new ones" in line for line in caplog.messages)
    assert head(tmp_path / "run").shape[0] == CLASSES + 2 == len(before) + 2


def test_settings_that_change_the_course_are_refused_and_those_that_do_not_are_taken(
    settings: Callable[..., Config], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(settings(tmp_path))
    with pytest.raises(TrainError, match=r"train.head.margin \(0.15 → 0.3\).*--restart"):
        run(settings(tmp_path, "train.head.margin=0.3"))
    run(settings(tmp_path, "train.log_every=2", "train.data.workers=1"))
    pretrain(settings(tmp_path, "train.steps=8", "train.optimizer.learning_rate=1e-4"))
    told = "6 of 8 steps done, with train.optimizer.learning_rate (0.0008 → 0.0001), train.steps (6 → 8)"
    assert any(told in line for line in caplog.messages)
    pretrain(settings(tmp_path, "train.steps=9", "train.accumulate=2", "train.loss.shared_negatives=true"))
    told = "train.accumulate (1 → 2), train.loss.shared_negatives (False → True)"
    assert any(told in line for line in caplog.messages), "they change what is compared with what"
    found = run(settings(tmp_path, "train.head.margin=0.3"), restart=True)
    assert found["steps"] == 6


def test_shared_negatives_of_compiled_blocks_that_draw_are_refused(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a second pass that drops other paths than the first, whose gradient is then of neither."""
    shared = ("train.loss.shared_negatives=true", "train.accumulate=2", "train.steps=1")
    monkeypatch.setattr(trainer_module, "draws_differ", lambda _: True)
    with pytest.raises(TrainError, match=r"train\.loss\.shared_negatives: .* set train\.encoder\.compile=false"):
        run(settings(tmp_path, *shared, "train.encoder.compile=true"))
    run(settings(tmp_path, *shared))


def test_a_training_leaves_torchs_settings_as_they_were(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: a program that trains once and computes with one thread, or in TF32, ever after."""
    torch.set_num_threads(2)
    run(settings(tmp_path, "train.threads=1", "train.precision=bfloat16", "train.steps=1"))
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, "highest")


def test_bfloat16_trains_and_keeps_float32_weights(settings: Callable[..., Config], tmp_path: Path) -> None:
    run(settings(tmp_path, "train.precision=bfloat16"))
    assert {x.dtype for x in weights(tmp_path).values() if x.is_floating_point()} == {torch.float32}


def test_the_best_checkpoint_stays(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: a best step that was evaluated between two checkpoints and never saved."""
    often = ("train.evaluate_every=1", "train.checkpoint_every=100", "train.keep_checkpoints=1", "train.steps=8")
    run(settings(tmp_path, *often))
    figures = {r["step"]: r["figures"]["mAP"] for r in rows(tmp_path) if r["kind"] == "evaluation" and r["step"]}
    marked = checkpoint.best(tmp_path)
    assert marked is not None
    assert marked[1] == max(figures.values()) == figures[marked[0]]
    assert checkpoint.steps(tmp_path) == sorted({marked[0], 8})


def test_a_mean_of_the_weights_that_begins_late_begins_with_the_trained_ones(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    """Catches: a mean that still holds the random weights of the start, which evaluation and export would then use."""
    run(settings(tmp_path, "train.steps=30"))
    trained = weights(tmp_path)
    run(settings(tmp_path, "train.steps=31", "train.optimizer.ema=0.999"))
    last = checkpoint.latest(tmp_path)
    assert last is not None
    mean = load_file(last / "ema.safetensors")
    name = "model.visual.conv1.weight"
    assert (mean[name] - trained[name]).norm() < 0.01 * trained[name].norm()


def evaluations(folder: Path) -> list[tuple[int, dict[str, float]]]:
    return [(r["step"], r["figures"]) for r in rows(folder) if r["kind"] == "evaluation"]


@pytest.mark.parametrize("killed_at", [3, 6])
def test_a_kill_in_an_evaluation_loses_no_step_and_no_figure(
    settings: Callable[..., Config], tmp_path: Path, killed_at: int
) -> None:
    """Catches: an evaluation of an hour, in which the steps since the last checkpoint can be lost; figures that are
    missing afterwards, or twice; a best checkpoint that nobody knows."""
    often = ("train.evaluate_every=3", "train.checkpoint_every=100", "train.save_in_background=false")
    count = 0

    def killed(*arrays: Any) -> dict[str, float]:
        nonlocal count
        count += 1
        if count == 1 + killed_at // 3:
            raise KeyboardInterrupt
        return held_out(*arrays)

    run(settings(tmp_path / "whole", *often))
    with pytest.raises(KeyboardInterrupt):
        train(settings(tmp_path / "cut", *often), World(), killed)
    assert checkpoint.steps(tmp_path / "cut")[-1] == killed_at
    found = run(settings(tmp_path / "cut", *often))
    assert evaluations(tmp_path / "cut") == evaluations(tmp_path / "whole")
    assert [step for step, _ in evaluations(tmp_path / "cut")] == [0, 3, 6]
    assert found["after"] == evaluations(tmp_path / "whole")[-1][1]
    assert far(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    assert checkpoint.best(tmp_path / "cut") == checkpoint.best(tmp_path / "whole")
    run(settings(tmp_path / "cut", *often))
    assert len(evaluations(tmp_path / "cut")) == 3


def test_a_kill_between_the_figures_and_the_mark_of_the_best_leaves_neither_out(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ("train.evaluate_every=3", "train.checkpoint_every=100")
    for place in ("mark_best", "prune"):
        with monkeypatch.context() as patched:
            real = getattr(checkpoint, place)

            def killed(folder: str, *how: Any, marks: Any = real, place: str = place) -> None:
                if place == "mark_best" or checkpoint.best(folder):
                    raise KeyboardInterrupt
                marks(folder, *how)

            patched.setattr(checkpoint, place, killed)
            with pytest.raises(KeyboardInterrupt):
                run(settings(tmp_path / place, *often))
        assert [step for step, _ in evaluations(tmp_path / place)] == [0]
        run(settings(tmp_path / place, *often))
        figures = dict(evaluations(tmp_path / place))
        assert list(figures) == [0, 3, 6]
        best = max((3, 6), key=lambda step: figures[step]["mAP"])
        assert checkpoint.best(tmp_path / place) == (best, figures[best]["mAP"])


BATCHES = 9


def stopped_in_its_evaluation(rank: int, size: int, folder: str, tree: dict[str, Any]) -> None:
    """One of `size` ranks; the last one is asked to stop when the third of nine batches of a set is encoded."""
    world = World(rank, size)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    seen = []

    def batches(mine: range) -> Iterator[tuple[list[int], np.ndarray]]:
        for n in range(BATCHES):
            seen.append(n)
            if n == 2 and rank == size - 1 and len(seen) > BATCHES:
                signal.raise_signal(signal.SIGTERM)
            yield list(mine[n * 64 : (n + 1) * 64]), np.zeros((64, 32, 32, 3), np.uint8)

    def sets(towers: OnRanks) -> dict[str, float]:
        vectors_ND, _ = towers.images(BATCHES * 64 * size, batches)
        return {"set/images": float(world.max(torch.tensor(float(len(vectors_ND)))))}

    with pytest.raises(Interrupted, match=r"interrupted after step 2 of 6, which is saved in .*step-00000002"):
        train(configuration.from_tree(tree, "a test"), world, held_out, sets=sets)
    Path(folder, f"seen-{rank}").write_text(str(len(seen)))
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_a_stop_in_an_evaluation_ends_it_at_the_next_batch_on_all_ranks(
    settings: Callable[..., Config], tmp_path: Path, size: int
) -> None:
    """Catches: a grace period of a minute that an evaluation of an hour uses up; a rank that leaves the others in an
    exchange."""
    often = ("train.evaluate_every=2", "train.checkpoint_every=100")
    given = settings(tmp_path / "run", *often).model_dump(mode="json")
    start = torch.multiprocessing.start_processes
    start(stopped_in_its_evaluation, (size, str(tmp_path), given), nprocs=size, start_method="forkserver")
    assert {(tmp_path / f"seen-{rank}").read_text() for rank in range(size)} == {str(BATCHES + 3)}
    assert checkpoint.steps(tmp_path / "run") == [2]
    run(settings(tmp_path / "run", *often))
    assert [step for step, _ in evaluations(tmp_path / "run")] == [0, 2, 4, 6]


def test_more_steps_done_than_asked_for_is_refused(settings: Callable[..., Config], tmp_path: Path) -> None:
    run(settings(tmp_path))
    with pytest.raises(TrainError, match="has done 6 steps, more than the 3 asked for"):
        run(settings(tmp_path, "train.steps=3"))


def test_few_evaluated_images_are_of_new_and_of_known_entities(models: Callable[[str], str], tmp_path: Path) -> None:
    """Catches: entities taken for new because none of their training images is among the few that are evaluated, and
    single images of many entities, among which there is nothing to retrieve."""
    classes = 60
    some = [image_row(i, labels=[(i % classes, 0.9)]) for i in range(6 * classes)]
    settings = tree(write_dataset(tmp_path / "i2e", some, classes=classes), models("vit"), tmp_path / "run")
    settings["train"] |= {"evaluate_images": 24, "steps": 1}
    settings["train"]["data"] |= {"hold_out_images": 0.2}
    asked: list[tuple[Any, ...]] = []

    def figures(*arrays: Any) -> dict[str, float]:
        asked.append(arrays)
        return {}

    train(configuration.from_tree(settings, "a test"), World(), figures)
    _, class_N, new_N, text_CD, _, trained_M = asked[0]
    assert new_N.sum() == (~new_N).sum() == len(trained_M) == 24
    assert len(set(class_N[new_N].tolist())) <= 5
    assert not set(class_N[new_N].tolist()) & set(trained_M.tolist())
    assert set(class_N[~new_N].tolist()) & set(trained_M.tolist())
    assert len(text_CD) == len(set(class_N.tolist())) == class_N.max() + 1
