"""A bi-encoder's vectors in the life of an output: it is merged, forgets a unit, makes them again, is cleaned."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from i2e_pipeline.commands import merge as merging
from i2e_pipeline.commands.clean import clean
from i2e_pipeline.core.config import Config
from i2e_pipeline.engine.units import Units
from i2e_pipeline.rerank.fusing import Fusing
from i2e_pipeline.rerank.reranker import About, begin, save
from i2e_pipeline.stages import from_tree, pipeline
from tests.chain import rows, run, settings
from tests.rerank.small import encoder

pytestmark = pytest.mark.slow
OF_RERANKER = ("candidate_vectors", "rerank")
UPTO = ("knowledge_base", "surfaces", "pairs", "extract", "link", *OF_RERANKER)


def bi_encoder(folder: Path, seed: int) -> Path:
    made = begin("bi", encoder(folder / f"bert-{seed}"))
    torch.manual_seed(seed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save(made, str(folder / f"bi-{seed}"), About("bi", Fusing(0.5, 3.0, 0.0)))
    return folder / f"bi-{seed}"


def looked_at_again(config: Config, spark: Any) -> list[dict[str, Any]]:
    """Rows of `reranked`; numbers but for the rounding of their batch."""
    found = rows(pipeline(config, lambda: spark), "reranked")
    for row in found:
        row.update({name: pytest.approx(row[name], abs=2 / 1024) for name in ("score", "probability")})
    return sorted(found, key=lambda r: (r["unit"], r["text_id"], r["start"], r["end"], r["entity_id"]))


def encoded(config: Config, spark: Any) -> list[int]:
    return sorted(row["entity_id"] for row in rows(pipeline(config, lambda: spark), "candidate_vectors"))


def of_reranker(done: dict[str, int]) -> list[int]:
    return [done[name] for name in OF_RERANKER]


@pytest.mark.long
def test_what_a_reranker_keeps_lives_as_its_output_does(world: Path, spark: Any, tmp_path: Path) -> None:
    """Catches: a merge that encodes all again or keeps two vectors of an entity; links that count in a merged output
    and are in none of its segments; vectors of an older reranker that `clean` leaves."""
    model = bi_encoder(tmp_path, 4)

    def of(output: str, shards: str) -> Config:
        config = settings(
            world,
            tmp_path / output,
            f"link.reranker.model={model}",
            "link.reranker.margin=0.9",
            "link.reranker.budget=0.2",
            "link.reranker.device=cpu",
            shards=shards,
        )
        run(config, spark, *UPTO)
        (tmp_path / output / "config.yaml").write_text(yaml.safe_dump(config.shown()))
        return config

    of("a", "*[01]"), of("b", "*[12]")
    both = of("both", "*")
    at_once = looked_at_again(both, spark)
    assert any(row["score"] != None for row in at_once)  # noqa: E711 - of approx

    first, second, third = (str(tmp_path / name) for name in ("a", "b", "c"))
    merged = from_tree(merging.settings_of(first, second, third), "a test")
    merging.merge(first, second, pipeline(merged))
    assert of_reranker(run(merged, spark, *UPTO)) == [0, 0]
    assert encoded(merged, spark) == encoded(both, spark)
    assert looked_at_again(merged, spark) == at_once

    assert of_reranker(run(merged, spark, *UPTO, redo=("candidate_vectors",)))[0] == 2  # one of each input
    assert encoded(merged, spark) == encoded(both, spark)
    assert looked_at_again(merged, spark) == at_once

    unit = Units(third).known()[0].name
    pipeline(merged, lambda: spark).forget(unit)
    assert of_reranker(run(merged, spark, *UPTO)) == [0, 0]
    assert looked_at_again(merged, spark) == [row for row in at_once if row["unit"] != unit]

    shutil.rmtree(model)
    shutil.copytree(bi_encoder(tmp_path, 5), model)
    assert of_reranker(run(merged, spark, *UPTO)) == [1, 2]
    other = looked_at_again(merged, spark)
    assert other != [row for row in at_once if row["unit"] != unit]
    assert [freed.kind for freed in clean(pipeline(merged, lambda: spark))] == ["segments"]
    assert len(pipeline(merged).tables.commits("candidate_vectors")) == 1
    assert of_reranker(run(merged, spark, *UPTO)) == [0, 0]
    assert looked_at_again(merged, spark) == other
