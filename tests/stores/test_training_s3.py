"""A training whose folder is in a store: saved, gone on with on other machines, exported and measured from there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pyarrow import fs as pafs

from tests.small_models import write_model
from tests.stores.conftest import SECRET, Store
from tests.train import ranks
from tests.train.small_dataset import image_row, write_dataset

pytestmark = [pytest.mark.s3, pytest.mark.slow]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a small training; `folder` and `steps` are to come."""
    place = tmp_path_factory.mktemp("given")
    rows = [image_row(i, labels=[(i % 9, 0.9)]) for i in range(90)]
    return {
        "dataset": write_dataset(place / "i2e", rows, units=3, classes=9), "device": "cpu", "threads": 1,
        "encoder": {"model": write_model(place / "vit", "vit")}, "log_every": 1, "checkpoint_every": 2,
        "data": {"batch_size": 12, "workers": 0, "hold_out_entities": 0.3, "hold_out_images": 0.05},
        "head": {"sample": 0.5, "sample_min": 2}, "optimizer": {"ema": 0.9},
    }  # fmt: skip


def settings(place: Path, store: Store, given: dict[str, Any], **train: Any) -> Path:
    options = dict(option.removeprefix("storage.options.").split("=", 1) for option in store.options)
    tree = {
        "output": str(place.parent / "out"), "storage": {"options": options}, "train": {**given, **train},
    }  # fmt: skip
    place.write_text(yaml.safe_dump(tree))
    return place


def in_store(store: Store, name: str) -> dict[str, int]:
    selector = pafs.FileSelector(f"{store.bucket}/{name}", recursive=True, allow_not_found=True)
    found = store.filesystem.get_file_info(selector)
    return {i.path.removeprefix(f"{store.bucket}/{name}/"): i.size for i in found if i.type == pafs.FileType.File}


def content(store: Store, name: str) -> bytes:
    with store.filesystem.open_input_stream(f"{store.bucket}/{name}", compression=None) as stream:
        return bytes(stream.read())


def trained(file: Path, machine: Path, count: int = 1, machines: int = 1) -> str:
    return ranks.finish(ranks.start(file, count, machines=machines, scratch=machine))


def journal(store: Store, name: str) -> list[int]:
    rows = [json.loads(line) for line in content(store, f"{name}/journal.jsonl").splitlines()]
    return [row["step"] for row in rows if row["kind"] == "step"]


def test_it_goes_on_from_the_store_on_other_machines(store: Store, given: dict[str, Any], tmp_path: Path) -> None:
    """Catches: a checkpoint that only the machine has that wrote it; one that looks whole before its last file is
    there; a journal that begins anew; figures that depend on where a training lies."""
    here = settings(tmp_path / "here.yaml", store, given, folder=str(tmp_path / "local"), steps=6)
    trained(here, tmp_path / "m0")
    there = f"s3://{store.bucket}/run"
    said = trained(settings(tmp_path / "a.yaml", store, given, folder=there, steps=4), tmp_path / "m1")
    assert SECRET not in said
    files = in_store(store, "run")
    assert {"outcome.json", "journal.jsonl", "loss.png", "config.yaml", "export/README.md"} <= files.keys()
    assert {f"checkpoints/step-0000000{n}/state.json" for n in (2, 4)} | {"checkpoints/best.json"} <= files.keys()
    outcome = json.loads(content(store, "run/outcome.json"))
    assert (outcome["folder"], outcome["export"]) == (there, f"{there}/export")
    assert not list(tmp_path.glob("m1/*/train/*/checkpoints/*")), "what is in the store does not stay on the machine"

    # A save that was killed: no state.json. The training goes on from the one before, elsewhere, on two machines.
    store.filesystem.delete_file(f"{store.bucket}/run/checkpoints/step-00000004/state.json")
    longer = settings(tmp_path / "b.yaml", store, given, folder=there, steps=6)
    said = trained(longer, tmp_path / "m2", count=2, machines=2)
    assert f"goes on from {there}/checkpoints/step-00000002, 2 of 6 steps done" in said
    assert journal(store, "run") == [1, 2, 3, 4, 5, 6]
    files = in_store(store, "run/checkpoints/step-00000006")
    assert {f"head-0000{rank}-of-00002.safetensors" for rank in (0, 1)} < files.keys()
    local = json.loads((tmp_path / "local" / "journal.jsonl").read_text().splitlines()[-1])
    far = json.loads(content(store, "run/journal.jsonl").splitlines()[-1])
    assert far["figures"] == {name: pytest.approx(figure, abs=0.03) for name, figure in local["figures"].items()}

    # And from there on one, which fetches what both wrote.
    said = trained(settings(tmp_path / "c.yaml", store, given, folder=there, steps=8), tmp_path / "m3")
    assert f"goes on from {there}/checkpoints/step-00000006, 6 of 8 steps done" in said
    assert journal(store, "run") == list(range(1, 9))
    kept = {path.split("/")[1] for path in in_store(store, "run") if path.startswith("checkpoints/step")}
    assert kept - {f"step-0000000{n}" for n in (4, 6, 8)} <= {"step-00000002"}, "the newest three, and the best"


def test_a_step_is_exported_measured_and_begun_from_by_its_uri(
    store: Store, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = f"s3://{store.bucket}/first"
    trained(settings(tmp_path / "a.yaml", store, given, folder=there, steps=4), tmp_path / "m1")
    second = settings(
        tmp_path / "b.yaml", store, given, folder=str(tmp_path / "second"), steps=2, start_from=f"{there}@2"
    )
    said = trained(second, tmp_path / "m2")
    assert f"begins from {there}/checkpoints/step-00000002" in said

    monkeypatch.setenv("TMPDIR", str(tmp_path / "m3"))
    (tmp_path / "m3").mkdir()
    config = str(tmp_path / "a.yaml")

    def i2e(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "i2e_pipeline.cli", *command], capture_output=True, text=True)

    done = i2e("export-model", "--config", config, "--checkpoint", "2")
    assert done.returncode == 0, done.stderr
    assert "exports/step-00000002/open_clip/open_clip_model.safetensors" in in_store(store, "first")
    card = (Path(done.stdout.strip()) / "README.md").read_text()
    assert "## Data" in card, "the journal, which knows the data, was read"
    assert "| steps | 2 |" in card
    done = i2e("export-model", there, "--config", config, "--checkpoint", "9")
    assert f"{there} has no checkpoint '9': it has those of steps 2, 4" in done.stderr

    photos = tmp_path / "photos"
    for n in range(6):
        (photos / f"{n % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (200 * (n % 2), 30 * n, 90)).save(photos / f"{n % 2}" / f"{n}.png")
    models = (f"--model=two=train:{there}@2", f"--model=last=train:{there}@latest")
    done = i2e("evaluate", *models, f"--data=c={photos}", "--suite=gpr", "--config", config)
    assert done.returncode == 0, done.stderr
    assert {"two", "last"} <= set(done.stdout.split())
