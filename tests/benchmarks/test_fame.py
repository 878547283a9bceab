"""The fit of fame's exponents finds those that made the choices."""

from __future__ import annotations

import bz2
import json
import random
from pathlib import Path

import numpy as np

from benchmarks import fame
from tests.wikidata.lines import line


def test_a_fit_finds_the_weights_that_chose() -> None:
    rng = np.random.default_rng(0)
    wanted = np.array([0.4, 0.8, 0.0, -0.5, 1.0])
    spans, each = 4000, 4
    signs = rng.normal(size=(spans * each, 5))
    offset, span = rng.normal(size=spans * each), np.repeat(np.arange(spans), each)
    data = fame.Choices(signs, offset, span, np.zeros(spans, np.int64), 0)
    p = fame.shares(data, wanted).reshape(spans, each)
    data.right = np.arange(spans) * each + (p.cumsum(axis=1) < rng.random((spans, 1))).sum(axis=1)
    found = fame.fit(data, range(5))
    assert (np.abs(found.weights - wanted) < 4 * found.errors).all()
    assert (found.errors < 0.1).all()
    without = fame.fit(data, [0, 1, 2])
    assert without.weights[3:].tolist() == [0, 0]
    assert without.nats < found.nats - 0.01


def test_it_reads_a_dump_and_gold(tmp_path: Path) -> None:
    """Namesakes of which the one with more sitelinks is meant, four times of five."""
    draws = random.Random(0)
    sites = {f"w{n}wiki": {"title": "x"} for n in range(20)}
    lines = [
        line(2 * n + k, f"Name {chr(97 + n % 26)}{n // 26}", sitelinks=sites if k else {})
        for n in range(1, 301)
        for k in (0, 1)
    ]
    (tmp_path / "wikidata").mkdir()
    (tmp_path / "wikidata" / "sample-dump.json.bz2").write_bytes(bz2.compress(b"\n".join(lines)))
    (tmp_path / "wikidata" / "popularity.csv").write_text("qid,number\nQ2,4\n")
    (tmp_path / "gold").mkdir()
    texts = []
    for n in range(1, 301):
        qid = 2 * n + (draws.random() < 0.8)
        surface = f"Name {chr(97 + n % 26)}{n // 26}"
        texts.append(json.dumps({"text": surface, "mentions": [{"surface": surface, "qid": f"Q{qid}"}]}))
    for n, name in enumerate((*fame.TRAIN, *fame.DEV)):
        (tmp_path / "gold" / f"{name}.jsonl").write_text("\n".join(texts[n::4]))
    (figures,) = fame.main(["--data", str(tmp_path)]).values()
    assert figures["spans"] == 150
    assert figures["described"] == 0
    assert figures["share of items with"]["sitelinks"] == 0.5
    weight, error = figures["fit"]["sitelinks"]
    assert 0.3 < weight < 0.6  # ln 4 / ln 21
    assert 0 < error < 0.1
    assert set(figures["dev"]) == {*fame.DEV}
