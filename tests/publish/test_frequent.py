"""What is most frequent of each entity, and what texts and scores tell of it: exact counts on tables made by hand."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import pytest

from i2e_pipeline.publish import frequent
from i2e_pipeline.publish.statistics import QUANTILES, TOP, of_labels, of_texts

LABELS = (
    "unit string, pair_id int, entity_id long, clip_score float, probability float, mention string, reason string, "
    "wider_of long"
)


def label(pair: int, entity: int, mention: str | None, reason: str | None = None, **more: Any) -> tuple[Any, ...]:
    row = {"unit": "u-1", "clip_score": 0.3, "probability": 0.9, "wider_of": None} | more
    return (row["unit"], pair, entity, row["clip_score"], row["probability"], mention, reason, row["wider_of"])


def most_frequent(
    spark: Any, labels: list[tuple[Any, ...]], urls: dict[int, str | None], parts: int = 1
) -> dict[int, dict[str, Any]]:
    """urls: of each pair."""
    rows = spark.createDataFrame(labels, LABELS).repartition(parts)
    units = {row[1]: row[0] for row in labels}
    pairs = spark.createDataFrame(
        [(units[pair], pair, url) for pair, url in urls.items()], "unit string, pair_id int, url string"
    )
    return {r["entity_id"]: r.asDict(recursive=True) for r in frequent.most_frequent(rows, pairs).collect()}


def test_what_a_handful_of_labels_says(spark: Any) -> None:
    labels = [
        label(1, 10, "Mercury"),
        label(1, 11, "Mercury", "other_entity"),
        label(1, 12, "planet", "below_bar"),  # other words: no other reading of "Mercury"
        label(2, 10, "MERCURY", unit="u-2"),
        label(2, 11, "MERCURY", "other_entity", unit="u-2"),
        label(3, 11, "mercury"),
        label(3, 10, "mercury", "other_entity"),
        label(3, 13, "mercury", "below_bar"),
        label(4, 10, "Merkur"),
        label(4, 20, "Merkur", wider_of=11),  # what stands above another reading is no confusion
        label(5, 10, None, "below_bar"),
        label(5, 11, None),  # labels of old outputs name no words
    ]
    urls = {
        1: "https://www.a.org/1.jpg",
        2: "http://img.a.org:80/2.jpg",
        3: "http://a.org/3",
        4: "http://A.org",
        5: None,
    }
    found = most_frequent(spark, labels, urls)
    assert found[10] == {
        "entity_id": 10,
        "surfaces": [{"surface": "mercury", "pairs": 2}, {"surface": "merkur", "pairs": 1}],
        "domains": [{"domain": "a.org", "pairs": 2}, {"domain": "img.a.org", "pairs": 1}],
        "distinct_domains": 2,
        "confusions": [{"entity_id": 11, "won": 2, "lost": 1}],
    }
    assert found[11]["confusions"] == [
        {"entity_id": 10, "won": 1, "lost": 2},
        {"entity_id": 13, "won": 1, "lost": 0},
    ]
    assert (found[11]["surfaces"], found[11]["distinct_domains"]) == ([{"surface": "mercury", "pairs": 1}], 1)
    assert found[13] == {
        "entity_id": 13, "surfaces": [], "domains": [], "distinct_domains": 0,
        "confusions": [{"entity_id": 11, "won": 0, "lost": 1}],
    }  # fmt: skip
    assert found[20]["confusions"] == []
    assert 12 not in found


def test_the_first_ten_do_not_depend_on_partitions_and_ties_go_by_value(spark: Any) -> None:
    """Catches: a list of what came first of those that are equally frequent."""
    draw = random.Random(0)
    labels, urls, counts = [], {}, Counter[str]()
    for pair in range(600):
        host = f"h{min(draw.randrange(30), draw.randrange(30)):02}.org"
        labels.append(label(pair, 7, "Name", unit=f"u-{pair % 3}"))
        labels += [label(pair, 100 + draw.randrange(40), "Name", "other_entity", unit=f"u-{pair % 3}")]
        urls[pair] = f"https://{host}/{pair}"
        counts[host] += 1
    first = most_frequent(spark, labels, urls)
    assert first == most_frequent(spark, labels[::-1], urls, parts=7)
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    assert [(d["domain"], d["pairs"]) for d in first[7]["domains"]] == expected
    assert first[7]["distinct_domains"] == len(counts) > TOP
    lost = Counter(row[2] for row in labels if row[6] is not None)
    against = sorted(lost.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    assert [(c["entity_id"], c["won"]) for c in first[7]["confusions"]] == against


def test_a_domain_is_what_a_list_of_domains_would_name(spark: Any) -> None:
    """Catches: a domain in the statistics that a list of it does not take out."""
    urls = dict(enumerate(["http://www.Example.org/a//b", "example.org:80/a//b", "HTTP://münchen.de/ä b.jpg",
                           "xn--mnchen-3ya.de/1", "data:image/png;base64,AAAA//AA", None]))  # fmt: skip
    told = most_frequent(spark, [label(pair, 10, "Name") for pair in urls], urls)[10]
    assert told["domains"] == [{"domain": "example.org", "pairs": 2}, {"domain": "xn--mnchen-3ya.de", "pairs": 2}]
    assert told["distinct_domains"] == 2


def test_texts_count_once_and_mentions_once_for_each_pair(spark: Any) -> None:
    """Catches: a text that two units have, counted twice in a dataset that grew and once in one that is built anew."""
    latin, han = "Latin", "Han"
    texts = [("u-1", 1, 5, latin), ("u-1", 2, 1, han), ("u-2", 1, 2, latin), ("u-2", 3, 10, han)]
    candidates = [
        ("u-1", 1, 42, 1), ("u-1", 1, 43, 2), ("u-1", 1, 42, 2), ("u-1", 2, 43, 1),
        ("u-2", 1, 42, 1), ("u-2", 1, 43, 2), ("u-2", 1, 42, 2), ("u-2", 3, 42, 3),
    ]  # fmt: skip
    found = of_texts(
        spark.createDataFrame(candidates, "unit string, text_id int, entity_id long, rank int"),
        spark.createDataFrame(texts, "unit string, text_id int, pairs long, script string"),
    )
    rows = sorted((*r[:4], [tuple(s) for s in r["scripts"]]) for r in found.collect())
    assert rows == [(42, 2, 24, 7, [(latin, 14), (han, 10)]), (43, 2, 8, 1, [(latin, 7), (han, 1)])]


@pytest.mark.parametrize("parts", [1, 5])
def test_quantiles_are_those_of_the_sorted_scores(spark: Any, parts: int) -> None:
    draw = random.Random(1)
    scores = defaultdict(list)
    labels = []
    for pair in range(1500):
        entity = min(draw.randrange(6), draw.randrange(6))
        score, chosen = round(draw.gauss(0.25, 0.1), 5), draw.random() < 0.4 and entity != 5
        scores[entity].append((score, chosen))
        labels.append(label(pair, entity, "x", None if chosen else "below_bar", clip_score=score))
    labels.append(label(1500, 9, "x", clip_score=-0.25))
    scores[9].append((-0.25, True))
    found = of_labels(spark.createDataFrame(labels, LABELS).repartition(parts), quantiles=True)
    rows = {r["entity_id"]: r.asDict(recursive=True) for r in found.collect()}
    assert rows.keys() == scores.keys()
    for entity, row in rows.items():
        every, labelled = [s for s, _ in scores[entity]], [s for s, chosen in scores[entity] if chosen]
        assert (row["pairs_proposed"], row["pairs_labelled"]) == (len(every), len(labelled))
        assert row["mean_clip_score"] == pytest.approx(sum(every) / len(every), abs=2e-6)
        for name, of in (("clip_scores", every), ("clip_scores_labelled", labelled)):
            if not of:
                assert row[name] is None
                continue
            for quantile, twentieths in QUANTILES.items():
                at = -(-Fraction(twentieths, 20) * len(of) // 1)  # the first that this share does not exceed
                assert row[name][quantile] == pytest.approx(sorted(of)[int(at) - 1], abs=0.00051)
    plain = of_labels(spark.createDataFrame(labels, LABELS), quantiles=False)
    told = ("pairs_proposed", "pairs_labelled", "mean_clip_score", "mean_clip_score_labelled", "mean_probability")
    for row in plain.collect():
        assert {name: row[name] for name in told} == {name: rows[row["entity_id"]][name] for name in told}
