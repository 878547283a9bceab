"""OVEN's scores: the published rules on made-up cases, and what is said of files that cannot be scored.

The rules, as the authors' scorer (edchengg/oven_eval, oven_eval.py) carries them out: a side is
round(100 * right / n, 2); a set is 2 / (1/seen + 1/unseen) of the two, 0 taken as 1e-12; the final score is the same of
the two sets, unrounded; scores are then rounded to two places. That scorer and this module were run side by side on 300
random cases and agreed in every figure; the cases below have its figures worked out by these formulas.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.evaluate import compare, results
from i2e_pipeline.evaluate.oven_scores import OvenError, Truth, measure_predictions, score, set_of, side_of


def examples(name: str, seen: int, unseen: int, split: str = "val") -> list[dict[str, Any]]:
    return [
        {
            "data_id": f"oven_{name}_{split}_{n:08d}",
            "image_id": f"oven_{n:08d}",
            "question": "what is this?",
            "entity_id": f"Q{n + 1}",
            "entity_text": f"entity {n}",
            "data_split": f"{split}_{'seen' if n < seen else 'unseen'}",
        }
        for n in range(seen + unseen)
    ]


def predicted(rows: Sequence[dict[str, Any]], right_seen: int, right_unseen: int) -> list[dict[str, Any]]:
    """The first so many of each side right, the others wrong."""
    left = {"seen": right_seen, "unseen": right_unseen}
    made = []
    for row in rows:
        side = side_of(row["data_split"])
        left[side] -= 1
        made.append({"data_id": row["data_id"], "pred_entity_id": row["entity_id"] if left[side] >= 0 else "Q0"})
    return made


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def hm(a: float, b: float) -> float:
    return 2 / (1 / (a or 1e-12) + 1 / (b or 1e-12))


@pytest.mark.parametrize(
    ("entity", "query"),
    [
        ((30, 7, 40, 11), (3, 1, 7, 2)),
        ((30, 0, 40, 11), (3, 1, 7, 2)),  # nothing right on one side
        ((30, 0, 40, 0), (3, 0, 7, 0)),  # nothing right at all
        ((30, 30, 40, 40), (3, 3, 7, 7)),
        ((1, 1, 3, 1), (3, 2, 8, 1)),  # 33.33 and 66.67: rounded before the mean is taken
        ((800, 1, 800, 1), (3, 1, 7, 2)),  # 0.125 %: rounded to the even hundredth, as Python rounds
    ],
)
def test_scores_follow_the_authors_formulas(
    entity: tuple[int, int, int, int], query: tuple[int, int, int, int], tmp_path: Path
) -> None:
    paths: dict[str, tuple[str, str]] = {}
    expected: dict[str, Any] = {}
    sets: dict[str, float] = {}
    for name, (seen, right_seen, unseen, right_unseen) in {"entity": entity, "query": query}.items():
        rows = examples(name, seen, unseen)
        paths[name] = (
            written(tmp_path / f"p_{name}.jsonl", predicted(rows, right_seen, right_unseen)),
            written(tmp_path / f"r_{name}.jsonl", rows),
        )
        sides = {"seen": round(right_seen / seen * 100, 2), "unseen": round(right_unseen / unseen * 100, 2)}
        sets[name] = hm(sides["seen"], sides["unseen"])
        expected |= {f"{name}_result": sides, f"{name}_score": round(sets[name], 2)}
    expected["final_score"] = round(hm(sets["query"], sets["entity"]), 2)
    tree = measure_predictions(*([pair[n] for pair in paths.values()] for n in (0, 1)))
    found = tree["results"]["oven"]
    assert {key: found[key] for key in expected} == expected
    assert tree["notes"] == []


def test_the_final_score_is_of_unrounded_scores() -> None:
    """Catches: a mean of rounded scores, which differs in the last place."""
    rows = {"entity": examples("entity", 9, 29), "query": examples("query", 9, 9)}
    sets = {
        name: Truth(name, {r["data_id"]: r["entity_id"] for r in of}, [side_of(r["data_split"]) for r in of])
        for name, of in rows.items()
    }
    differs = 0
    for right in range(1, 30):
        given_ = {
            "entity": {p["data_id"]: p["pred_entity_id"] for p in predicted(rows["entity"], 2, right)},
            "query": {p["data_id"]: p["pred_entity_id"] for p in predicted(rows["query"], 4, 1)},
        }
        found, _ = score(sets, given_)
        entity = hm(round(200 / 9, 2), round(right / 29 * 100, 2))
        query = hm(round(400 / 9, 2), round(100 / 9, 2))
        assert found["final_score"] == round(hm(query, entity), 2)
        differs += found["final_score"] != round(hm(round(query, 2), round(entity, 2)), 2)
    assert differs


def test_an_example_without_a_prediction_is_wrong_and_said(tmp_path: Path) -> None:
    """Catches: the authors' rule, by which a model that answers the easy half alone has twice the accuracy."""
    rows = examples("entity", 10, 10)
    some = predicted(rows, 10, 10)[:15]
    some[0]["pred_entity_id"] = None
    tree = measure_predictions([written(tmp_path / "p.jsonl", some)], [written(tmp_path / "r.jsonl", rows)])
    found = tree["results"]["oven"]
    assert found["entity_result"] == {"seen": 90.0, "unseen": 50.0}
    assert found["counts"]["entity"] == {
        "seen": {"examples": 10, "right": 9, "missing": 1},
        "unseen": {"examples": 10, "right": 5, "missing": 5},
    }
    assert any("6 of 20 examples have no prediction and count as wrong" in note for note in tree["notes"])
    assert found["final_score"] is None  # there is no query set
    assert found["entity_score"] == round(hm(90, 50), 2)


def test_a_side_without_examples_leaves_no_score(tmp_path: Path) -> None:
    rows = examples("query", 4, 0)
    tree = measure_predictions(
        [written(tmp_path / "p.jsonl", predicted(rows, 1, 0))], [written(tmp_path / "r.jsonl", rows)]
    )
    found = tree["results"]["oven"]
    assert found["query_result"] == {"seen": 25.0, "unseen": None}
    assert found["query_score"] is None
    assert any("no example is unseen" in note for note in tree["notes"])


def test_one_file_may_hold_both_sets_and_a_folder_the_authors_names(tmp_path: Path) -> None:
    both = [*examples("entity", 4, 4), *examples("query", 4, 4)]
    one = measure_predictions(
        [written(tmp_path / "p.jsonl", predicted(both, 3, 3))], [written(tmp_path / "r.jsonl", both)]
    )
    folders = []
    for folder, rows in (("p", predicted(both, 3, 3)), ("r", both)):
        (tmp_path / folder).mkdir()
        for name in ("entity", "query"):
            some = [row for row in rows if name in row["data_id"]]
            written(tmp_path / folder / f"oven_{name}_val.jsonl", some)
        folders.append(str(tmp_path / folder))
    two = measure_predictions([folders[0]], [folders[1]])
    assert one["results"] == two["results"]
    assert one["results"]["oven"]["counts"]["query"]["seen"]["examples"] == 4


@pytest.mark.parametrize("name", ["oven_entity_val.jsonl.gz", "oven_data/oven_entity_val.jsonl", "oven_human.jsonl"])
def test_a_folder_stands_for_its_files_packed_or_not_and_of_either_split(name: str, tmp_path: Path) -> None:
    """Catches: a folder that `--data` reads, and `--ground-truth` does not."""
    rows = examples("entity", 4, 4)
    for folder, of in (("p", predicted(rows, 1, 2)), ("r", rows)):
        (tmp_path / folder / name).parent.mkdir(parents=True)
        content = "".join(json.dumps(row) + "\n" for row in of).encode()
        (tmp_path / folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = measure_predictions([str(tmp_path / "p")], [str(tmp_path / "r")])["results"]["oven"]
    assert found["entity_result"] == {"seen": 25.0, "unseen": 50.0}
    with pytest.raises(OvenError, match=r"--ground-truth .*: the folder holds none of oven_entity_val\.jsonl, "):
        measure_predictions([str(tmp_path / "p")], [str(tmp_path)])


@pytest.mark.parametrize("spelling", ["q{}", "{}", "http://www.wikidata.org/entity/Q{}", "Q{} ", "entity {}"])
def test_ids_in_another_spelling_are_wrong_and_said(spelling: str, tmp_path: Path) -> None:
    """Catches: 0.00 without a word of why, where a model's answers were written without their Q."""
    rows = examples("entity", 3, 3)
    odd = [{"data_id": row["data_id"], "pred_entity_id": spelling.format(row["entity_id"][1:])} for row in rows]
    tree = measure_predictions([written(tmp_path / "p.jsonl", odd)], [written(tmp_path / "r.jsonl", rows)])
    first = repr(spelling.format(1))
    assert tree["results"]["oven"]["accuracy"] == 0
    assert [
        n
        for n in tree["notes"]
        if f"entity: 6 predictions that count as wrong are no Wikidata ids as Q31 (the first is {first}" in n
    ]
    answers = [{**row, "entity_id": told["pred_entity_id"]} for row, told in zip(rows, odd, strict=True)]
    truth = written(tmp_path / "r.jsonl", answers)
    assert measure_predictions([str(tmp_path / "p.jsonl")], [truth])["results"]["oven"]["accuracy"] == 100
    tree = measure_predictions([written(tmp_path / "p.jsonl", predicted(rows, 3, 3))], [truth])
    assert [n for n in tree["notes"] if "entity: 6 answers of the ground truth that count as wrong" in n]


def test_one_of_two_files_of_predictions_may_be_empty(tmp_path: Path) -> None:
    """Catches: a folder that an evaluation wrote, of whose query set no image was there, and that cannot be scored."""
    truths = [written(tmp_path / f"r_{name}.jsonl", examples(name, 2, 2)) for name in ("entity", "query")]
    made = written(tmp_path / "p_entity.jsonl", predicted(examples("entity", 2, 2), 1, 2))
    empty = written(tmp_path / "p_query.jsonl", [])
    found = measure_predictions([made, empty], truths)["results"]["oven"]
    assert (found["entity_score"], found["query_score"]) == (66.67, 0.0)
    with pytest.raises(OvenError, match=r"p_query\.jsonl: no prediction is there"):
        measure_predictions([empty], truths)


def test_ids_that_say_nothing_are_told_apart_by_the_files_names(tmp_path: Path) -> None:
    plain = [
        {"data_id": str(n), "entity_id": f"Q{n}", "data_split": f"val_{side}"}
        for n, side in enumerate(("seen", "seen", "unseen"))
    ]
    truths = [written(tmp_path / f"oven_{name}_val.jsonl", plain) for name in ("entity", "query")]
    right = [{"data_id": row["data_id"], "pred_entity_id": row["entity_id"]} for row in plain]
    wrong = [{**row, "pred_entity_id": "Q0"} for row in right]
    named = [written(tmp_path / "my_entity.jsonl", right), written(tmp_path / "my_query.jsonl", wrong)]
    found = measure_predictions(named, truths)["results"]["oven"]
    assert (found["entity_score"], found["query_score"]) == (100.0, 0.0)
    with pytest.raises(OvenError, match=r"p\.jsonl, line 1: 0 is in the sets entity and query"):
        measure_predictions([written(tmp_path / "p.jsonl", right)], truths)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"data_id": "oven_entity_val_99999999", "pred_entity_id": "Q1"},
            r"line 9: oven_entity_val_99999999 is not in",
        ),
        ({"data_id": "oven_entity_val_00000000", "pred_entity_id": "Q1"}, r"line 9: .*00000000 is predicted twice"),
        ({"pred_entity_id": "Q1"}, r"line 9: data_id is missing"),
        ({"data_id": "oven_entity_val_00000007"}, r"line 9: .*00000007 has no pred_entity_id"),
        ({"data_id": "oven_entity_val_00000007", "pred_entity_id": 7}, r"line 9: pred_entity_id 7: .*\"Q31\""),
        ('{"data_id": "oven_ent', r"p\.jsonl, line 9: no JSON"),
        ("[1]", r"line 9: an object is wanted"),
    ],
)
def test_a_bad_line_of_predictions_is_named(line: Any, said: str, tmp_path: Path) -> None:
    rows = examples("entity", 4, 5)
    path = tmp_path / "p.jsonl"
    written(path, predicted(rows, 1, 1)[:7])
    with path.open("a") as file:
        file.write("\n" + (line if isinstance(line, str) else json.dumps(line)))
    with pytest.raises(I2EError, match=said):
        measure_predictions([str(path)], [written(tmp_path / "r.jsonl", rows)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"entity_id": None}, r"r\.jsonl, line 2: .* has no entity_id, .* the test split"),
        ({"entity_id": 42}, r"r\.jsonl, line 2: entity_id 42: .*\"Q31\""),
        ({"data_id": "oven_entity_val_00000000"}, r"line 2: .* stands twice"),
        ({"data_split": "test_seen"}, r"line 2: data_split 'test_seen', and 'val_seen' before"),
    ],
)
def test_a_bad_line_of_annotations_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    rows = examples("entity", 4, 4)
    path = written(tmp_path / "p.jsonl", predicted(rows, 1, 1))
    rows[1] |= change
    with pytest.raises(OvenError, match=said):
        measure_predictions([path], [written(tmp_path / "r.jsonl", rows)])


def test_annotations_without_sides_and_missing_files_are_refused(tmp_path: Path) -> None:
    rows = [{**row, "data_split": "entity_train"} for row in examples("entity", 2, 2)]
    path = written(tmp_path / "p.jsonl", [{"data_id": rows[0]["data_id"], "pred_entity_id": "Q1"}])
    with pytest.raises(OvenError, match="no data_split of the entity set says _seen or _unseen"):
        measure_predictions([path], [written(tmp_path / "r.jsonl", rows)])
    with pytest.raises(OvenError, match=r"none\.jsonl: no such file"):
        measure_predictions([path], [str(tmp_path / "none.jsonl")])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(OvenError, match=r"empty\.jsonl is empty"):
        measure_predictions([path], [str(tmp_path / "empty.jsonl")])


def test_results_of_two_files_are_compared_with_whole_entities_resampled(tmp_path: Path) -> None:
    rows = examples("entity", 20, 20)
    read = []
    for name, right in (("a", 4), ("b", 18)):
        tree = measure_predictions(
            [written(tmp_path / "p.jsonl", predicted(rows, right, right))], [written(tmp_path / "r.jsonl", rows)]
        )
        (tmp_path / f"{name}.json").write_text(json.dumps(tree))
        read.append(results.read(str(tmp_path / f"{name}.json")))
    by_figure = {d.figure: d for d in compare.compare(read[0], read[1])}
    assert by_figure["entity seen"].verdict == "b is better"
    assert by_figure["entity seen"].interval is not None
    assert by_figure["entity seen"].interval.clusters == 20
    assert by_figure["entity"].values == pytest.approx((0.2, 0.9))


@given(
    st.lists(st.tuples(st.sampled_from(["seen", "unseen"]), st.booleans()), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_the_order_of_predictions_does_not_matter(rows: list[tuple[str, bool]], random: Any) -> None:
    ids = [f"oven_entity_val_{n}" for n in range(len(rows))]
    truth = Truth("entity", dict.fromkeys(ids, "Q1"), [side for side, _ in rows])
    pairs = [(data_id, "Q1" if right else "Q2") for data_id, (_, right) in zip(ids, rows, strict=True)]
    straight = score({"entity": truth}, {"entity": dict(pairs)})
    random.shuffle(pairs)
    assert score({"entity": truth}, {"entity": dict(pairs)}) == straight
    of = {side: [right for s, right in rows if s == side] for side in ("seen", "unseen")}
    for side, rights in of.items():
        expected = round(sum(rights) / len(rights) * 100, 2) if rights else None
        assert straight[0]["entity_result"][side] == expected


def test_sets_and_sides_are_read_from_names() -> None:
    assert [set_of(x) for x in ("oven_query_val_00000048", "oven_entity_train_1", "oven_human_3", "identity_7")] == [
        "query", "entity", "human", None,
    ]  # fmt: skip
    assert set_of("7", "val_seen", "oven_query_val.jsonl") == "query"
    assert [side_of(x) for x in ("val_seen", "val_unseen", "entity_val_unseen", "entity_train")] == [
        "seen", "unseen", "unseen", "",
    ]  # fmt: skip
