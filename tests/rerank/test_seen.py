"""Where entities were seen: what is kept of gold links, and whom a model is told about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline import cli
from i2e_pipeline.commands import reranker as reranker_command
from i2e_pipeline.core.arrays import ArraysError
from i2e_pipeline.engine.units import InputError
from i2e_pipeline.extract.text import clean
from i2e_pipeline.rerank import reranker
from i2e_pipeline.rerank.questions import QUESTIONS, laid_flat
from i2e_pipeline.rerank.seen import AROUND, Seen, around, build
from i2e_pipeline.rerank.training import Training
from tests.rerank.small import encoder, planted

LINKS = [
    (7, "the castle of Athens at night", 14, 20),
    (7, "old Athens", 4, 10),
    (7, "Athens", 0, 6),
    (9, "a bridge in Athens, Georgia", 12, 27),
]


def test_an_entity_is_told_by_a_text_that_is_not_the_one_that_asks(tmp_path: Path) -> None:
    assert build(LINKS, tmp_path / "seen") == 2
    seen = Seen(tmp_path / "seen")
    ids = np.array([9, 7, 8])
    told = seen.of(ids)
    assert told[0] == "a bridge in Athens, Georgia"
    assert told[2] is None
    assert told[1] in {text for entity, text, *_ in LINKS if entity == 7}
    assert seen.of(ids, [LINKS[3][1], str(told[1]), "x"])[0] is None
    other = seen.of(np.array([7]), [f"  {told[1]} "])[0]  # white space makes no other text
    assert other not in (None, told[1])


@given(st.permutations(LINKS + LINKS[:2]))
def test_the_order_of_links_changes_nothing(tmp_path_factory: pytest.TempPathFactory, links: Any) -> None:
    folder = tmp_path_factory.mktemp("seen")
    for name, rows in (("a", LINKS), ("b", links)):
        build(rows, folder / name)
    for file in (folder / "a").iterdir():
        assert file.read_bytes() == (folder / "b" / file.name).read_bytes()


@given(st.text(max_size=300), st.integers(0, 300), st.integers(1, 20))
def test_what_is_told_is_cut_between_words_and_holds_the_mention(text: str, start: int, length: int) -> None:
    start = min(start, len(text))
    end = min(len(text), start + length)
    told = around(text, start, end)
    assert len(told) <= end - start + 2 * AROUND
    assert " ".join(text[start:end].split()) in told
    words = " ".join(text.split())
    assert told in words
    assert told == words or len(text) > AROUND


def test_a_text_without_blanks_keeps_what_stands_around() -> None:
    text = "座" * 100 + "雅典" + "夜" * 100
    assert around(text, 100, 102) == "座" * AROUND + "雅典" + "夜" * AROUND
    assert around("a" * 50 + "\t" + "b" * 40 + " Athens", 92, 98) == "b" * 40 + " Athens"


def test_a_text_of_no_link_tells_nothing(tmp_path: Path) -> None:
    assert build([], tmp_path / "seen") == 0
    assert Seen(tmp_path / "seen").of(np.array([1, 2]), ["a", "b"]) == [None, None]
    with pytest.raises(ArraysError, match="seen"):
        Seen(tmp_path)


def test_a_model_is_told_where_candidates_were_seen(tmp_path: Path) -> None:
    rows = planted(4)
    first = rows.to_pylist()[0]
    entity = first["candidates"][0]["entity_id"]
    build([(entity, "grey hill", 5, 9), (entity, first["text"], 0, 3)], tmp_path / "seen")
    seen = Seen(tmp_path / "seen")
    told = laid_flat(rows, seen).told
    assert told[0].endswith("; seen: grey hill")
    assert any("; seen: " in t for t in told[1:]) == any(
        c["entity_id"] == entity for r in rows.to_pylist()[1:] for c in r["candidates"]
    )
    assert not any("seen: " in t for t in laid_flat(rows).told)


def train(tmp_path: Path, *more: str) -> int:
    pq.write_table(planted(200), tmp_path / "a.parquet")
    command = ["reranker", "train", "--examples", str(tmp_path / "a.parquet"), "--model", encoder(tmp_path / "bert")]
    with pytest.raises(SystemExit) as ended:
        cli.main(
            [*command, "--write", str(tmp_path / "out"), "--epochs", "0.3", "--batch", "16", "--kind", "bi", *more]
        )
    return int(ended.value.code or 0)


def test_a_reranker_keeps_what_it_is_told_in_its_folder(tmp_path: Path) -> None:
    """Catches: a model that is asked without what it was trained with."""
    rows = planted(30)
    places = sorted({c["entity_id"] for r in rows.to_pylist() for c in r["candidates"]})
    nil = {"start": 5, "end": 9, "qid": None}
    lines = [{"text": f"seen near {n}", "mentions": [{"start": 0, "end": 4, "qid": f"Q{n}"}, nil]} for n in places]
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert train(tmp_path, "--seen", str(tmp_path / "gold.jsonl")) == 0
    made = reranker.load(str(tmp_path / "out"))
    assert (made.about.seen, made.about.trained["seen"], made.scorer.candidate_tokens) == (True, ["gold.jsonl"], 44)
    assert made.seen is not None
    assert made.seen.of(np.array(places)) == [f"seen near {n}" for n in places]
    questions = rows.select(QUESTIONS.names)
    told = made.probabilities(questions)[1]
    made.seen = None
    assert (made.probabilities(questions)[1] != told).any()
    (tmp_path / "out" / "seen" / "ends.npy").unlink()
    with pytest.raises(reranker.NoReranker, match="copy it whole"):
        reranker.load(str(tmp_path / "out"))


def test_texts_are_told_as_the_pipeline_cleans_them(tmp_path: Path) -> None:
    """Catches: a text that is told itself, because gold lines hold it as it was written."""
    raw = '"Dogs &amp; cats in\u00ad Athens" '
    start = raw.index("Athens")
    line = {"text": raw, "mentions": [{"start": start, "end": start + 6, "qid": "Q7"}]}
    (tmp_path / "gold.jsonl").write_text(json.dumps(line) + "\n")
    seen = reranker_command._seen([str(tmp_path / "gold.jsonl")], str(tmp_path / "seen"))
    asking = clean(raw)
    assert asking != raw
    assert seen.of(np.array([7])) == [" ".join(asking.split())]
    assert seen.of(np.array([7]), [asking]) == [None]


def test_what_is_no_rerankers_is_not_removed(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Catches: `--write out`, a slip for out/reranker, that removes a dataset when it has trained for hours."""
    (tmp_path / "out" / "kb").mkdir(parents=True)
    assert train(tmp_path)
    assert "name another folder" in capsys.readouterr().err
    (tmp_path / "out" / "kb").rmdir()  # an empty one may be filled
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "notes.txt").write_text("mine")
    assert train(tmp_path)
    assert (tmp_path / "out.training" / "notes.txt").exists()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="folder of its own"):
        reranker_command.train([], "bi", "", ".", Training())


def test_gold_lines_without_a_link_are_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "gold.jsonl").write_text('{"text": "a", "mentions": []}\n')
    assert train(tmp_path, "--seen", str(tmp_path / "gold.jsonl"))
    assert "no line links an entity" in capsys.readouterr().err
    assert not (tmp_path / "out.training" / "seen").exists()


def test_a_training_leaves_the_folder_as_it_was_until_it_is_whole(tmp_path: Path, monkeypatch: Any) -> None:
    """Catches: a training that moves the fingerprint of an output whose config names its folder."""
    assert train(tmp_path) == 0
    before = {p: p.read_bytes() for p in sorted((tmp_path / "out").rglob("*")) if p.is_file()}
    assert not (tmp_path / "out.training").exists()
    from i2e_pipeline.rerank import training

    real = training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: real(*a[:5], lambda: True, *a[6:], **k))
    assert train(tmp_path, "--seed", "1") == 130
    assert (tmp_path / "out.training" / "training.pt").exists()
    assert {p: p.read_bytes() for p in sorted((tmp_path / "out").rglob("*")) if p.is_file()} == before
    monkeypatch.setattr(training, "train", real)
    assert train(tmp_path, "--seed", "1") == 0
    assert not (tmp_path / "out.training").exists()
    after = {p: p.read_bytes() for p in sorted((tmp_path / "out").rglob("*")) if p.is_file()}
    assert after.keys() == before.keys()
    assert after != before
