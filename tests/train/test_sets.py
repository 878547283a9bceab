"""Image sets beside what is held out: measured at each evaluation, as `i2e evaluate` measures them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2e_pipeline import cli
from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import Config
from i2e_pipeline.evaluate.datasets import DatasetError
from i2e_pipeline.evaluate.sets_in_training import SetError
from i2e_pipeline.train.journal import rows
from tests.train import ranks
from tests.train.small_dataset import image_row, write_dataset
from tests.train.test_trainer import tree


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = [image_row(i, labels=[(i % 12, 0.9)]) for i in range(64)]
    return write_dataset(tmp_path_factory.mktemp("i2e") / "i2e", made, classes=12)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class below train/ and test/, 35 images; one of them cannot be decoded."""
    folder = tmp_path_factory.mktemp("sets") / "colours"
    noise = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 4)):
        for n, colour in enumerate(("red", "green", "blue", "grey", "white")):
            (folder / split / colour).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 200, (40, 56, 3), dtype=np.uint8)
                pixels[..., n % 3] += 10 * n
                Image.fromarray(pixels).save(folder / split / colour / f"{i}.png")
    (folder / "test" / "red" / "2.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def settings(dataset: str, colours: Path, models: Callable[[str], str]) -> Callable[..., Config]:
    def make(folder: Path, *overrides: str) -> Config:
        made = tree(dataset, models("vit"), folder)
        made["train"] |= {"evaluate_sets": {"colours": str(colours)}, "evaluate_every": 3, "steps": 6}
        made["evaluate"] = {"knn_k": [3]}
        return configuration.from_tree(configuration.merge(made, overrides), "a test")

    return make


def measured(folder: Path) -> dict[int, dict[str, Any]]:
    """Figures of the sets by step."""
    return {
        row["step"]: {name: value for name, value in row["figures"].items() if "/" in name}
        for row in rows(folder)
        if row["kind"] == "evaluation"
    }


@pytest.fixture(scope="module")
def trained(settings: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    pretrain(settings(folder, "train.optimizer.ema=0.5"))
    return folder


def test_figures_are_those_of_the_evaluation(
    trained: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: images that are prepared otherwise than an export prepares them; weights that are not the mean's."""
    place = tmp_path / "results.json"
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["evaluate", f"--model=train:{trained}@6", f"--data=colours={colours}", f"--json={place}",
             "--suite=gpr,knn,zero_shot", "--set", f"output={tmp_path}/out", "--set", "evaluate.knn_k=[3]",
             "--set", "evaluate.device=cpu"]
        )  # fmt: skip
    assert ended.value.code == 0, capsys.readouterr().err
    results = json.loads(place.read_text())["results"]
    theirs = {f"colours/{r['protocol']} {name}": value for r in results for name, value in r["figures"].items()}
    ours = measured(trained)[6]
    assert ours.keys() == theirs.keys() - {"colours/gpr mAP of random vectors"}
    assert {"colours/gpr mAP", "colours/knn k=3", "colours/zero_shot acc@1"} <= ours.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=1e-5), name


def test_they_are_measured_each_time_and_stand_beside_what_is_held_out(trained: Path) -> None:
    found = measured(trained)
    assert list(found) == [0, 3, 6]
    assert found[0].keys() == found[3].keys() == found[6].keys()
    assert found[0] != found[6]
    outcome = json.loads((trained / "outcome.json").read_text())
    assert {"mAP", "colours/gpr mAP"} <= outcome["after"].keys()
    assert "| colours/gpr mAP | " in (trained / "export" / "README.md").read_text()


@pytest.mark.slow
def test_ranks_and_shards_measure_the_same(settings: Callable[..., Config], tmp_path: Path) -> None:
    """Catches: ranks of which one calls its shards more often than the other, and waits for ever; rows in the order of
    ranks. 34 images of two ranks are 17 and 17, in one call each; with a text tower only rank 0 asks for."""
    still = "train.optimizer.learning_rate=1e-12"
    pretrain(settings(tmp_path / "one", still))
    started = {}
    for name, extra in {"ddp": (), "fsdp": ("train.strategy=fsdp",)}.items():
        place = tmp_path / f"{name}.yaml"
        place.write_text(configuration.dump(settings(tmp_path / name, still, *extra)))
        started[name] = ranks.start(place, 2)
    for name, processes in started.items():
        ranks.finish(processes)
        for step, figures in measured(tmp_path / "one").items():
            assert measured(tmp_path / name)[step] == pytest.approx(figures, abs=1e-3), name


def test_a_recipe_without_texts_leaves_out_what_needs_them(settings: Callable[..., Config], tmp_path: Path) -> None:
    pretrain(settings(tmp_path, "train.recipe=supervised", "train.steps=1"))
    assert measured(tmp_path)[1].keys() == {"colours/gpr mAP", "colours/knn k=3"}


def test_a_set_that_is_gone_is_left_out_and_the_training_goes_on(
    settings: Callable[..., Config], colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Catches: a month's training that ends because somebody tidied up a folder of pictures."""
    from i2e_pipeline.train.trainer import _Training

    shutil.copytree(colours, tmp_path / "pictures")
    all_steps = _Training._all_steps

    def tidied(self, stop):  # type: ignore[no-untyped-def]
        shutil.rmtree(tmp_path / "pictures")
        all_steps(self, stop)

    monkeypatch.setattr(_Training, "_all_steps", tidied)
    config = settings(tmp_path / "run", f"train.evaluate_sets.colours={tmp_path}/pictures", "train.steps=2")
    found = pretrain(config)
    assert found is not None
    assert "colours/gpr mAP" in found["before"]
    assert "mAP" in found["after"]
    assert "colours/gpr mAP" not in found["after"]
    assert any("train.evaluate_sets: colours is left out of this evaluation" in line for line in caplog.messages)


def test_another_set_joins_a_training_that_goes_on(
    settings: Callable[..., Config], colours: Path, tmp_path: Path
) -> None:
    pretrain(settings(tmp_path, "train.steps=2"))
    pretrain(settings(tmp_path, "train.steps=4", f"train.evaluate_sets.more={colours}", "train.evaluate_protocols=gpr"))
    assert measured(tmp_path)[4].keys() == {"colours/gpr mAP", "more/gpr mAP"}


def test_what_cannot_be_measured_is_refused_before_the_training(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        pretrain(settings(tmp_path, "train.evaluate_sets.more=nowhere"))
    with pytest.raises(SetError, match=r"train\.evaluate_protocols: 'magic' is no protocol: there are gpr,"):
        pretrain(settings(tmp_path, "train.evaluate_protocols=[magic]"))
    with pytest.raises(SetError, match=r"none of revisited applies to colours; there are gpr,"):
        pretrain(settings(tmp_path, "train.evaluate_protocols=[revisited]"))
    assert not (tmp_path / "journal.jsonl").exists()


def test_the_head_of_a_checkpoint_answers_oven(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: classes that are numbered by their index where a Wikidata id is asked for; a head that `i2e evaluate`
    does not find, since it measures an export."""
    from i2e_pipeline.train import checkpoint

    head = [entity for part, _ in checkpoint.load(checkpoint.find(trained, "6")).classes_by_entity() for entity in part]
    root = tmp_path / "oven"
    root.mkdir()
    rows = []
    for n, entity in enumerate(head):
        Image.new("RGB", (40, 40), (20 * n, 255 - 20 * n, 90)).save(root / f"oven_{n:08d}.jpg")
        side = "seen" if n % 2 else "unseen"
        ids = {"data_id": f"oven_entity_val_{n:08d}", "image_id": f"oven_{n:08d}", "question": "what is it?"}
        rows.append(ids | {"entity_id": f"Q{int(entity)}", "data_split": f"val_{side}"})
    (root / "oven_entity_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = tmp_path / "results.json"
    asked = ["evaluate", f"--model=train:{trained}@6", f"--data=oven={root}", f"--json={place}", "--set"]
    settings = [f"output={tmp_path}/out", "evaluate.device=cpu", "evaluate.oven.candidates=head"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*asked, *settings])
    assert ended.value.code == 0, capsys.readouterr().err
    (result,) = json.loads(place.read_text())["results"]
    assert result["counts"] == {"examples": len(head), "predicted": len(head), "candidates": len(head)}
    assert not any("no candidates" in note for note in result["notes"])
    assert 0 <= result["figures"]["entity seen"] <= 1
    (written,) = (tmp_path / "out").rglob("oven_entity_val.jsonl")
    answers = {json.loads(line)["pred_entity_id"] for line in written.read_text().splitlines()}
    assert answers <= {f"Q{int(entity)}" for entity in head}
