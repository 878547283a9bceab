"""`i2e reranker`: from Wikipedia's sentences, gold links and a dataset's own labels to a folder that a run reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline import cli
from i2e_pipeline.commands import reranker
from i2e_pipeline.engine.units import InputError
from i2e_pipeline.rerank.questions import EXAMPLES
from i2e_pipeline.rerank.reranker import about
from tests.rerank.small import encoder, planted
from tests.wikidata.pages import FOOT, head, page

pytestmark = pytest.mark.slow


@pytest.fixture
def pipeline(whole: Path, world: Path, spark: Any) -> Any:
    from i2e_pipeline.stages import pipeline
    from tests.chain import settings

    return pipeline(settings(world, whole), lambda: spark)


def test_sentences_of_wikipedia_become_examples(pipeline: Any, whole: Path, tmp_path: Path) -> None:
    entities = ds.dataset(f"{whole}/kb/entities", format="parquet").to_table()
    titles = Counter(str(title).lower() for title in entities["wikipedia_title"].to_pylist())
    names = Counter(entities["name"].to_pylist())
    titled = [e for e in entities.to_pylist() if e["wikipedia_title"]]
    sole = [e for e in titled if titles[e["wikipedia_title"].lower()] == names[e["name"]] == 1]
    known = [(e["entity_id"], e["name"], e["wikipedia_title"]) for e in sole[:40]]
    assert len(known) > 10
    text = "\n\n".join(f"We saw [[{title}|{name}]] and [[Nobody knows this]] there." for _, name, title in known)
    pages = tmp_path / "enwiki-pages-articles.xml"
    pages.write_text(head() + page("Sights", text) + page("Elsewhere", "no link") + FOOT, encoding="utf-8")
    figures = reranker.wikipedia_gold(pipeline, [str(pages)], str(tmp_path / "gold.jsonl"), most=1000)
    lines = [json.loads(line) for line in (tmp_path / "gold.jsonl").read_text("utf-8").splitlines()]
    assert figures["sentences"] == len(lines) == len({line["text"] for line in lines})
    by_name = {name: number for number, name, _ in known}
    for line in lines:
        for m in line["mentions"]:
            surface = line["text"][m["start"] : m["end"]]
            assert f"Q{by_name[surface]}" == m["qid"]
    again = reranker.wikipedia_gold(pipeline, [str(pages)], str(tmp_path / "few.jsonl"), most=5)
    assert again["sentences"] == 5

    made = reranker.gold_examples(pipeline, [str(tmp_path / "gold.jsonl")], str(tmp_path / "gold.parquet"))
    examples = pq.read_table(tmp_path / "gold.parquet")
    assert examples.schema.equals(EXAMPLES)
    assert 0 < len(examples) == made["examples"] <= made["gold_mentions"]
    right = 0
    for row in examples.to_pylist():
        assert row["text"][row["start"] : row["end"]] in by_name
        assert [c["probability"] for c in row["candidates"]] == sorted(
            (c["probability"] for c in row["candidates"]), reverse=True
        )
        right += row["chosen"] in [c["entity_id"] for c in row["candidates"]]
    assert right > len(examples) / 2


def test_what_labels_are_sure_of_becomes_examples(pipeline: Any, tmp_path: Path) -> None:
    figures = reranker.own_examples(pipeline, str(tmp_path / "own.parquet"), sure=0.5)
    rows = pq.read_table(tmp_path / "own.parquet").to_pylist()
    assert len(rows) == figures["examples"] > 5
    assert all(len(r["candidates"]) > 1 for r in rows)
    assert all(r["chosen"] in [c["entity_id"] for c in r["candidates"]] for r in rows)
    assert any(r["chosen"] != r["candidates"][0]["entity_id"] for r in rows)  # the image has told
    fewer = reranker.own_examples(pipeline, str(tmp_path / "few.parquet"), sure=0.5, most=3)
    assert fewer["examples"] == 3
    some = pq.read_table(tmp_path / "few.parquet").to_pylist()
    assert all(r in rows for r in some)
    with pytest.raises(InputError, match="lower --sure"):
        reranker.own_examples(pipeline, str(tmp_path / "none.parquet"), sure=1.0)


def test_a_reranker_is_trained_by_the_command(tmp_path: Path, capsys: Any) -> None:
    pq.write_table(planted(120), tmp_path / "a.parquet")
    bert, out = encoder(tmp_path / "bert"), tmp_path / "out"
    train = ["reranker", "train", "--examples", str(tmp_path / "a.parquet"), "--model", bert, "--write", str(out)]
    with pytest.raises(SystemExit) as ended:
        cli.main([*train, "--epochs", "1", "--batch", "16", "--kind", "bi"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    made = about(str(out))
    assert made.kind == "bi"
    assert made.figures["right"] == told["right"]
    assert made.trained["examples"] == ["a.parquet"]
    assert not (out / "training.pt").exists()
    assert (out / "curve.jsonl").exists()


@pytest.mark.parametrize("wrong", ["missing", "text", "other"])
def test_files_that_hold_no_examples_are_named(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.parquet"
    if wrong == "text":
        path.write_text("no parquet")
    elif wrong == "other":
        pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(InputError, match=r"wrong\.parquet.*i2e reranker examples"):
        reranker.read_examples([str(path)])
