"""A training that goes on over a dataset that grew and lost an entity: the rows of its head follow their entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from i2e_pipeline.commands.train import pretrain
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.train import checkpoint
from tests.chain import run, settings
from tests.small_models import write_model

FORMS = ["parquet", pytest.param("delta", marks=(pytest.mark.delta, pytest.mark.long))]
STILL = ("train.optimizer.learning_rate=1e-12", "train.head.learning_rate=1e-12")
"""Steps that move nothing: a row that is saved is the row that was read."""


def head_by_entity(folder: Path) -> dict[int, torch.Tensor]:
    last = checkpoint.latest(folder)
    assert last is not None
    parts = [load_file(file) for file in sorted(last.glob("head-*"))]
    return {int(e): row for part in parts for e, row in zip(part["entity_C"], part["weights_CD"], strict=True)}


def held_out(folder: str) -> set[int]:
    entities = open_published(folder).entities
    return {
        e for e, s in zip(*(entities.column(c).to_pylist() for c in ("entity_id", "split")), strict=True) if s == "test"
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_the_head_follow_their_entities(
    world: Path, tmp_path: Path, spark: Any, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: a head whose rows are another entity's once the dataset grew; an entity that left and takes the index of
    others with it; a split that moves, so that a training goes on with what it was measured on."""
    caplog.set_level("INFO", "i2e_pipeline")
    output, model = tmp_path / "out", write_model(tmp_path / "model", "vit")
    trained = (
        f"train.encoder.model={model}", "train.encoder.pretrained=null", "train.steps=2", "train.data.batch_size=16",
        "train.data.workers=0", "train.recipe=supervised", "train.device=cpu", "train.evaluate_every=null",
        f"storage.format={form}", f"train.folder={tmp_path}/training",
    )  # fmt: skip
    small = settings(world, output, *trained, shards="00000")
    run(small, spark)
    assert pretrain(small) is not None
    before = open_published(f"{output}/i2e").entities
    rows, test = head_by_entity(tmp_path / "training"), held_out(f"{output}/i2e")
    index = dict(zip(*(before.column(c).to_pylist() for c in ("entity_id", "class_index")), strict=True))
    assert rows.keys() == index.keys()

    gone = next(e for e in index if e not in test)
    (tmp_path / "gone.txt").write_text(f"Q{gone}\n")
    large = settings(
        world, output, *trained, *STILL, "train.steps=3", f"select.exclude={tmp_path}/gone.txt",
    )  # fmt: skip
    run(large, spark)
    now = open_published(f"{output}/i2e").entities
    after = {row["entity_id"]: row for row in now.select(["entity_id", "class_index", "retired", "split"]).to_pylist()}
    assert {e: after[e]["class_index"] for e in index} == index, "an index once given stays its entity's"
    assert after[gone]["retired"]
    assert len(after) > len(index)
    assert {e for e in index if after[e]["split"] == "test"} == test

    caplog.clear()
    found = pretrain(large)
    assert found is not None
    assert found["steps"] == 3
    said = f"entity head: {len(index)} classes from the checkpoint"
    assert any(line.startswith(said) and f"{len(after) - len(index)} new ones" in line for line in caplog.messages)
    grown = head_by_entity(tmp_path / "training")
    assert grown.keys() == after.keys()
    for entity, row in rows.items():
        assert torch.allclose(grown[entity], row, atol=1e-6), entity
