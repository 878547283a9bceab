"""`i2e calibrate --marks`: what people marked is truth, on the small world without any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands import calibrate as command
from i2e_pipeline.commands.calibrate import Marks, _scored_with_truth, calibrate
from i2e_pipeline.core.errors import NoSuchFile
from i2e_pipeline.engine.units import InputError
from i2e_pipeline.inputs.marks import Mark, append
from i2e_pipeline.label import judged
from i2e_pipeline.label.calibration import Calibration
from i2e_pipeline.label.stages import calibration_of
from i2e_pipeline.stages import pipeline
from tests.chain import settings

Label = tuple[str, int]


@pytest.fixture
def weighed(world: Path, copied: Path) -> dict[Label, tuple[float, bool]]:
    """Probability of each label that the run weighed, and whether it is right."""
    truths = {
        (shard, row): said
        for shard, path in enumerate(sorted(world.glob("pairs/*.parquet")))
        for row, said in enumerate(pq.read_table(path, columns=["truth_qid"])["truth_qid"].to_pylist())
    }
    columns = ["image_id", "shard", "row", "entity_id", "probability"]
    rows = ds.dataset(copied / "labels", format="parquet").to_table(columns).to_pylist()
    return {
        (r["image_id"].hex(), r["entity_id"]): (r["probability"], truths[r["shard"], r["row"]] == f"Q{r['entity_id']}")
        for r in rows
    }


@pytest.fixture
def mark(weighed: dict[Label, tuple[float, bool]], tmp_path: Path) -> Callable[..., str]:
    """Marks the first labels as they are, or as `lie` says, into a new file."""

    def marked(number: int, name: str = "marks.jsonl", lie: str | None = None, weight: float | None = 2.0) -> str:
        path = str(tmp_path / name)
        for (image, entity), (p, is_right) in sorted(weighed.items())[:number]:
            append(path, Mark(image, entity, lie or ("right" if is_right else "wrong"), None, p, weight))
        return path

    return marked


def test_marks_that_are_too_few_are_refused_before_anything_runs(tmp_path: Path) -> None:
    whole = pipeline(settings(tmp_path, tmp_path / "new"), lambda: pytest.fail("Spark was started"))
    for name, number, weight, message in (
        ("few", 7, 1.0, r"few: 7 drawn marks, and 3 are missing to shift"),
        ("eye", 50, None, r"0 drawn marks.* 10 are missing.*; 50 of labels that nobody drew do not"),
    ):
        for n in range(number):
            append(str(tmp_path / name), Mark("0" * 32, n + 1, "right", weight=weight))
        with pytest.raises(InputError, match=message):
            calibrate(whole, None, 0.9, str(tmp_path / "c.json"), str(tmp_path / name))
    with pytest.raises(NoSuchFile):
        calibrate(whole, None, 0.9, str(tmp_path / "c.json"), str(tmp_path / "none.jsonl"))


@pytest.mark.slow
def test_few_marks_shift_and_many_fit_without_any_other_truth(
    world: Path, copied: Path, tmp_path: Path, spark: Any, mark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(world, copied, "pairs.truth_column=nobody")
    whole, to = pipeline(config, lambda: spark), str(tmp_path / "c.json")
    base = calibration_of(config)
    few = mark(40)
    append(few, Mark("0" * 32, 1, "right", weight=1.0))
    append(few, Mark("1" * 32, 1, "unsure", weight=1.0))
    figures = calibrate(whole, None, 0.9, to, few)
    assert figures["marks"] == {"file": few, "drawn": 41, "by_eye": 0, "unsure": 1, "used": 40}
    assert "a fit of weights and threshold needs 300" in figures["shifted"]["why"]
    made = Calibration.load(to)
    assert (made.weights, made.threshold, made.features) == (base.weights, base.threshold, base.features)
    assert made.bias == pytest.approx(base.bias + figures["shifted"]["shift"], abs=1e-3)
    assert "40 marks: the bias alone" in made.fitted_on
    assert made.measured["marks"] == 40

    lying = calibrate(whole, None, 0.9, to, mark(40, "lies", lie="wrong"))["shifted"]
    assert lying["shift"] < figures["shifted"]["shift"] - 0.3
    with pytest.raises(InputError, match="of labels that are scored in these shards"):
        command._refuse_few(Marks.read(few, False), 3, in_shards=True)

    monkeypatch.setattr(command, "MARKS_OF_A_FIT", 100)
    figures = calibrate(whole, None, 0.6, to, mark(1_000, "many", weight=None), all_marks=True)
    assert "shifted" not in figures
    assert figures["cross_validated"]["labels"] > 0
    assert figures["marks"]["used"] == figures["marks"]["by_eye"] > 100
    assert Calibration.load(to).weights != base.weights


@pytest.mark.slow
def test_a_mark_says_something_of_its_label_alone_in_all_pairs_of_its_image(
    world: Path, copied: Path, tmp_path: Path, spark: Any, weighed: dict[Label, tuple[float, bool]]
) -> None:
    """Beside the truth of the input, which they overrule: judged row by row as the marks say."""
    by_image: dict[str, list[int]] = {}
    for image, entity in sorted(weighed):
        by_image.setdefault(image, []).append(entity)
    several = [(image, entities) for image, entities in by_image.items() if len(entities) > 2][:6]
    said: dict[Label, bool] = {}
    path = str(tmp_path / "marks.jsonl")
    for n, (image, (first, second, third, *_)) in enumerate(several):
        is_right = weighed[image, first][1]
        if n % 2:  # against what the input says
            append(path, Mark(image, first, "wrong" if is_right else "right", weight=1.0 + n))
            said[image, first] = not is_right
        else:
            append(path, Mark(image, first, "other", second, weight=1.0 + n))
            said |= {(image, first): False, (image, second): True}
        append(path, Mark(image, third, "unsure", weight=1.0))
    run, _ = pipeline(settings(world, copied), lambda: spark).run()
    table = _scored_with_truth(run, Marks.read(path, False))
    options = table.filter(table["entity_id"].is_valid())
    right = judged.right(options).to_pylist()
    seen = set()
    for row, is_right in zip(options.to_pylist(), right, strict=True):
        label = row["image_id"].hex(), row["entity_id"]
        if label in said:
            seen.add(label)
            assert is_right == said[label], label
        elif label[0] not in dict(several):
            assert (row["affirmed"], row["marked"], row["weight"]) == (None, False, 1.0 if row["of_truth"] else None)
    assert seen == said.keys()
    weights = {(r["image_id"].hex(), r["entity_id"]): r["weight"] for r in options.to_pylist() if r["marked"]}
    assert len(weights) == len(several)
    assert sum(weights.values()) == pytest.approx(len(weights))

    alone, _ = pipeline(settings(world, copied, "pairs.truth_column=nobody"), lambda: spark).run()
    table = _scored_with_truth(alone, Marks.read(path, False))
    right = judged.right(table).to_pylist()
    known = {(r["image_id"].hex(), r["entity_id"]): y for r, y in zip(table.to_pylist(), right, strict=True)}
    assert {label: y for label, y in known.items() if y is not None} == said


def test_marks_are_counted_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    rows = [(1, "right", 2.0), (2, "wrong", None), (3, "unsure", 1.0), (4, "other", 3.0), (5, "right", 1.0)]
    lines = [{"image_id": "a" * 32, "entity_id": e, "mark": m, "weight": w} for e, m, w in rows]
    path.write_text("\n".join(json.dumps(line) for line in [*lines, {**lines[4], "mark": "cleared"}]) + "\n")
    drawn, everything = Marks.read(str(path), False), Marks.read(str(path), True)
    assert drawn.counts == everything.counts == {"drawn": 2, "by_eye": 1, "unsure": 1}
    assert drawn.labels["weight"].to_pylist() == [2.0, 3.0]
    assert everything.labels["weight"].to_pylist() == [1.0, 1.0, 1.0]
