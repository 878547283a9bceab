"""The stage `rerank` in the chain: whom it asks, what it leaves as it was, what it is without a model."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from i2e_pipeline.commands.link import link_texts
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.rerank.fusing import Fusing
from i2e_pipeline.rerank.questions import QUESTIONS
from i2e_pipeline.rerank.reranker import About, begin, load, save
from i2e_pipeline.rerank.stages import RerankByVectors
from i2e_pipeline.stages import pipeline
from tests.chain import rows, run, settings
from tests.rerank.small import encoder

pytestmark = pytest.mark.slow
UPTO = ("knowledge_base", "surfaces", "pairs", "extract", "link", "rerank")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reranker with random weights, whose scores weigh much."""
    folder = tmp_path_factory.mktemp("reranker")
    torch.manual_seed(3)
    made = begin("cross", encoder(folder / "bert"))
    for parameter in made.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.5)
    save(made, str(folder / "made"), About("cross", Fusing(0.5, 3.0, 0.0)))
    return str(folder / "made")


@pytest.fixture(scope="module")
def linked(world: Path, model: str, spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = settings(
        world,
        tmp_path_factory.mktemp("linked") / "out",
        f"link.reranker.model={model}",
        "link.reranker.margin=0.9",
        "link.reranker.budget=0.06",
        "link.reranker.device=cpu",
    )
    run(config, spark, *UPTO)
    return pipeline(config, lambda: spark)


def by_mention(found: list[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    grouped = defaultdict(list)
    for row in sorted(found, key=lambda r: r["rank"]):
        grouped[row["unit"], row["text_id"], row["start"], row["end"]].append(row)
    return grouped


def test_a_units_least_sure_mentions_are_asked_within_the_budget(linked: Any) -> None:
    before, after = (by_mention(rows(linked, table)) for table in ("candidates", "reranked"))
    assert before.keys() == after.keys()
    for unit in {key[0] for key in before}:
        mentions = {key: of for key, of in before.items() if key[0] == unit}
        margins = {key: of[0]["probability"] - of[1]["probability"] for key, of in mentions.items() if len(of) > 1}
        unsure = sorted((margin, key[1:], key) for key, margin in margins.items() if margin < 0.9)
        limit = math.floor(0.06 * len(mentions))
        assert 0 < limit < len(unsure)
        asked = {key for key, of in after.items() if key[0] == unit and of[0]["score"] is not None}
        assert asked == {key for *_, key in unsure[:limit]}


def test_who_is_not_asked_stays_as_it_was_and_all_candidates_stay(linked: Any) -> None:
    before, after = (by_mention(rows(linked, table)) for table in ("candidates", "reranked"))
    changed = 0
    for key, of in after.items():
        assert {c["entity_id"] for c in of} == {c["entity_id"] for c in before[key]}
        assert {c["entity_id"]: c["first_probability"] for c in of} == {
            c["entity_id"]: c["probability"] for c in before[key]
        }
        if of[0]["score"] is None:
            assert [{**c} for c in before[key]] == [
                {k: v for k, v in c.items() if k not in ("first_probability", "score")} for c in of
            ]
        else:
            assert [c["rank"] for c in of] == list(range(1, len(of) + 1))
            assert [c["probability"] for c in of] == sorted((c["probability"] for c in of), reverse=True)
            assert sum(c["probability"] for c in of) <= 1 + 1e-5
            changed += of[0]["entity_id"] != before[key][0]["entity_id"]
    assert changed
    told = [c.facts["notes"] for c in linked.tables.commits("rerank").values()]
    assert sum(m.get("mentions that mean something else after it", 0) for m in told) == changed
    assert sum(m["mentions looked at again"] for m in told) == sum(of[0]["score"] is not None for of in after.values())


def test_the_stages_behind_read_what_it_wrote(linked: Any) -> None:
    _, states = linked.run(["rerank"])
    assert sum(len(s.to_do) for s in states) == 0
    handed = linked.as_it_is()
    assert handed.standing("candidates") == "reranked"


def test_partitions_and_order_change_nothing(linked: Any, world: Path, spark: Any, tmp_path: Path) -> None:
    other = settings(
        world,
        tmp_path / "out",
        f"link.reranker.model={linked.config.link.reranker.model}",
        "link.reranker.margin=0.9",
        "link.reranker.budget=0.06",
        "link.reranker.batch_size=5",
        "run.waves_in_flight=1",
        "run.wave_units=1",
    )
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        run(other, spark, *UPTO)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before)

    def key(row: dict[str, Any]) -> Any:
        return tuple(row[name] for name in ("unit", "text_id", "start", "end", "entity_id"))

    there = sorted(rows(pipeline(other, lambda: spark), "reranked"), key=key)
    here = sorted(rows(linked, "reranked"), key=key)
    assert [{**r, "probability": 0, "score": 0} for r in there] == [{**r, "probability": 0, "score": 0} for r in here]
    scores = [(a["score"], b["score"]) for a, b in zip(here, there, strict=True) if a["score"] is not None]
    assert all(abs(a - b) <= 2 / 1024 for a, b in scores)  # another batch size: other roundings
    assert scores


def test_a_budget_of_nothing_asks_nobody(linked: Any, world: Path, spark: Any, caplog: Any) -> None:
    config = linked.config
    nobody = config.model_copy(
        update={
            "link": config.link.model_copy(update={"reranker": config.link.reranker.model_copy(update={"budget": 0.0})})
        }
    )
    with caplog.at_level(logging.INFO):
        run(nobody, spark, "rerank")
    assert " 0 of " in next(r.getMessage() for r in caplog.records if r.getMessage().startswith("rerank: "))
    without = pipeline(nobody, lambda: spark)
    assert all(r["score"] is None for r in rows(without, "reranked"))
    run(config, spark, "rerank")


def test_without_a_model_there_is_no_such_stage_and_nothing_changes(world: Path, tmp_path: Path) -> None:
    without = pipeline(settings(world, tmp_path / "out"))
    assert "rerank" not in without.names
    other = pipeline(settings(world, tmp_path / "out", "link.reranker.margin=0.3", "link.reranker.budget=0.5"))
    assert other.names == without.names
    assert [s.settings(other.config) for s in other.stages if s.name != "score"] == [
        s.settings(without.config) for s in without.stages if s.name != "score"
    ]


@pytest.mark.parametrize("what", ["empty", "gone"])
def test_a_folder_without_a_reranker_is_said_before_any_work(what: str, world: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    wrong = pipeline(
        settings(world, tmp_path / "out", f"link.reranker.model={tmp_path / what}"),
        lambda: pytest.fail("Spark was started"),
    )
    with pytest.raises(StageError, match=rf"link\.reranker\.model: .*{what}"):
        wrong.run()


def test_a_bi_encoders_vectors_are_made_once(world: Path, spark: Any, tmp_path: Path, caplog: Any) -> None:
    """Catches: entities encoded again by the next run, or in each batch; vectors that change what is answered."""
    torch.manual_seed(4)
    save(begin("bi", encoder(tmp_path / "bert")), str(tmp_path / "bi"), About("bi", Fusing(0.5, 3.0, 0.0)))
    few, more = (
        settings(
            world,
            tmp_path / "out",
            f"link.reranker.model={tmp_path}/bi",
            f"link.reranker.margin={margin}",
            "link.reranker.budget=0.2",
            "link.reranker.device=cpu",
        )
        for margin in (0.3, 0.9)
    )
    upto = (*UPTO[:-1], "candidate_vectors", "rerank")
    run(few, spark, *upto)
    first = pipeline(few, lambda: spark)
    made = rows(first, "candidate_vectors")
    assert made
    assert len({r["entity_id"] for r in made}) == len(made)
    _, states = first.run(["candidate_vectors", "rerank"])
    assert sum(len(s.to_do) for s in states) == 0
    run(more, spark, *upto)
    second = pipeline(more, lambda: spark)
    all_of_them = rows(second, "candidate_vectors")
    assert len({r["entity_id"] for r in all_of_them}) == len(all_of_them) > len(made)
    assert all(r in all_of_them for r in made)
    unsure = {r["entity_id"] for r in all_of_them}
    known = RerankByVectors().known(second.as_it_is())()
    assert known is not None
    assert known.lookup(np.array(sorted({*unsure, -1})))[0].tolist() == [False] + [True] * len(unsure)
    asked = [r for r in rows(second, "reranked") if r["score"] is not None]
    assert asked
    assert {r["entity_id"] for r in asked} <= unsure
    loaded = load(f"{tmp_path}/bi")
    told = {e["entity_id"]: e for e in rows(second, "kb/entities") if e["entity_id"] in unsure}
    texts = {t["text_id"]: t["text"] for t in rows(second, "texts")}
    for mention in list(by_mention(asked).values())[:20]:
        by_id = sorted(mention, key=lambda c: c["entity_id"])
        candidates = [
            {
                **{name: told[c["entity_id"]][name] for name in ("entity_id", "name", "description", "coarse_type")},
                "probability": c["first_probability"],
            }
            for c in by_id
        ]
        question = {"text": texts[mention[0]["text_id"]], "start": mention[0]["start"], "end": mention[0]["end"]}
        table = pa.Table.from_pylist([{**question, "candidates": candidates}], QUESTIONS)
        assert loaded.probabilities(table)[1] == pytest.approx([c["score"] for c in by_id], abs=2 / 1024)
    lines, links = tmp_path / "texts.jsonl", tmp_path / "links.jsonl"  # of no unit: nobody has kept vectors for them
    lines.write_text("".join(json.dumps({"id": n, "text": t}) + "\n" for n, t in enumerate(list(texts.values())[:40])))
    with caplog.at_level(logging.INFO):
        assert link_texts(second, str(lines), str(links)) == 40
    assert any(r.getMessage().startswith("rerank: ") and " 0 of " not in r.getMessage() for r in caplog.records)


def test_a_budget_of_nothing_encodes_nothing(world: Path, spark: Any, tmp_path: Path) -> None:
    torch.manual_seed(4)
    save(begin("bi", encoder(tmp_path / "bert")), str(tmp_path / "bi"), About("bi", Fusing()))
    nobody = settings(
        world, tmp_path / "out", f"link.reranker.model={tmp_path}/bi", "link.reranker.budget=0",
        "link.reranker.device=cpu",
    )  # fmt: skip
    run(nobody, spark, *UPTO[:-1], "candidate_vectors", "rerank")
    assert rows(pipeline(nobody, lambda: spark), "candidate_vectors") == []
    assert all(r["score"] is None for r in rows(pipeline(nobody, lambda: spark), "reranked"))
