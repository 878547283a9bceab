"""Why one dataset has not what the other has: each cause by the tables that say it, `unknown` where none does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands import summary
from i2e_pipeline.commands.diff import Side, as_json, diff
from i2e_pipeline.commands.diffing.causes import SENTENCES
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.schemas import ID, Reason
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.tables import Commit
from i2e_pipeline.publish.exclusion import fingerprints
from i2e_pipeline.sample import embedded
from i2e_pipeline.stages import from_tree, pipeline
from tests.train.small_dataset import entity_row, image_row, write_dataset

UNIT = "u-000000000000"
BAR = 0.6
ZEROS: dict[str, Any] = {"string": "", "bool": False, "float": 0.0, "double": 0.0, str(ID): bytes(16)}

Candidate = tuple[int, int, int, float, str | None]
"""Image, pair, entity, probability, why it is no label."""


def image_id(number: int) -> bytes:
    return hashlib.blake2b(f"image {number}".encode(), digest_size=16).digest()


def pair_id(number: int) -> bytes:
    return hashlib.blake2b(f"pair {number}".encode(), digest_size=16).digest()


def filled(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows with nothing in the other columns."""
    rest = {
        f.name: None if f.nullable else () if pa.types.is_list(f.type) else ZEROS.get(str(f.type), 0) for f in schema
    }
    return pa.RecordBatch.from_pylist([{**rest, **row} for row in rows], schema)


def output(
    folder: Path,
    images: Mapping[int, Mapping[int, float]],
    weighed: Sequence[Candidate] = (),
    rejects: Mapping[str, Sequence[tuple[int, str]]] | None = None,
    pairs: Sequence[int] = (),
    known: Sequence[int] | None = (100, 101, 102, 103),
    merged: Mapping[int, int] | None = None,
    live: Sequence[int] = (100, 101, 102, 103),
    bar: float = BAR,
    exclude: Sequence[str] = (),
    selected: Mapping[str, Any] | None = None,
    purged: bool = False,
) -> tuple[str, Run]:
    """A dataset of images (entities with their scores), and beside it the tables of a run that say the rest.

    known   entities of the knowledge base; None: it has left no table
    """
    config = from_tree(embedded.tree([f"output={folder}", f"select.exclude={list(exclude)}"]), "a test")
    tables = pipeline(config).tables

    def commit(stage: str, unit: str, rows: Mapping[str, Sequence[Mapping[str, Any]]], fingerprint: str = "f") -> None:
        of_stage = [t for t in rows if t != "rejects"]
        batches = [(t, filled(tables.catalogue.schema(t), some)) for t, some in rows.items()]
        written = tables.write_local(iter(batches), stage, unit, of_stage)
        tables.commit([(Commit(stage, unit, fingerprint, {}, written.files, 0, 0, written.rejected), [written])])

    def rejected(stage: str) -> list[dict[str, Any]]:
        return [{"reason": reason, "id": pair_id(pair)} for pair, reason in (rejects or {}).get(stage, ())]

    candidates = [
        {"image_id": image_id(i), "pair_id": pair_id(p), "entity_id": e, "probability": q, "reason": why}
        for i, p, e, q, why in weighed
    ]
    commit("pairs", UNIT, {"pairs": [{"pair_id": pair_id(p)} for p in pairs], "rejects": rejected("pairs")})
    commit("score", UNIT, {"rejects": rejected("score")})
    commit("label", UNIT, {"labels": candidates, "rejects": rejected("label")})
    commit("select", "all", {"selection": [], "rejects": rejected("select")})
    if known is not None:
        redirects = [{"entity_id": x, "into": y} for x, y in (merged or {}).items()]
        of_known = [{"entity_id": e} for e in known]
        commit("knowledge_base", "all", {"kb/entities": of_known, "kb/redirects": redirects})
    manifest = {
        "labels_chosen_by": {"bar": bar},
        "fingerprints": {"select": "f"},
        "settings": {
            "select": {
                "max_labels_per_image": 4, "max_images_per_entity": None, **(selected or {}),
                **({"excluded": digest(sorted(fingerprints(exclude)))} if exclude else {}),
            },
        },
        **({"purged": {"excluded_url": 1}} if purged else {}),
    }  # fmt: skip
    rows = [
        image_row(i, bytes=b"", split="train", pair_id=pair_id(i).hex(), labels=[(e - 100, s) for e, s in of.items()])
        for i, of in images.items()
    ]
    entities = [entity_row(n, retired=100 + n not in live) for n in range(4)]
    place = write_dataset(folder / "i2e", rows, entities=entities, units=1, manifest=manifest)
    return place, pipeline(config).as_it_is()


Output = tuple[str, Run]


def why(a: Output, b: Output, of: str = "labels") -> dict[str, Any]:
    """What A alone has, by the cause why B has it not; the reverse comparison says the same of it."""
    sides = [Side.of("A", *a), Side.of("B", *b)]
    found = as_json(diff(*sides, at_once=1))
    back = as_json(diff(Side.of("A", *b), Side.of("B", *a)))
    for kind in ("images", "labels"):
        assert found[kind]["why_only_in_a"] == back[kind]["why_only_in_b"]
        assert found[kind]["why_only_in_b"] == back[kind]["why_only_in_a"]
    told: dict[str, Any] = found[of]["why_only_in_a"]
    return told


HAD = {0: {100: 0.9}, 9: {103: 0.9}}
"""Image 0 showed entity 100. Image 9 is as it was in both."""
SAID_THEN = [(0, 0, 100, 0.9, None), (9, 9, 103, 0.9, None)]
NOW = {0: {101: 0.8}, 9: {103: 0.9}}
STAYS = [(0, 5, 101, 0.8, None), (9, 9, 103, 0.9, None)]
"""Another pair of image 0 gives it entity 101."""


@pytest.fixture
def then(tmp_path: Path) -> Output:
    return output(tmp_path / "a", HAD, SAID_THEN, pairs=[0, 9])


@pytest.mark.parametrize(
    ("cause", "now"),
    [
        ("not_in_knowledge_base", {"known": [101, 102, 103]}),
        ("merged", {"known": [101, 102, 103], "merged": {100: 101}}),
        ("threshold", {"weighed": [(0, 0, 100, 0.7, "below_bar")], "bar": 0.75}),
        ("score", {"weighed": [(0, 0, 100, 0.3, "below_bar")], "bar": 0.75}),
        ("score", {"weighed": [(0, 0, 100, 0.3, "below_bar")]}),
        ("other_entity", {"weighed": [(0, 0, 100, 0.3, "rival"), (0, 0, 101, 0.8, None)]}),
        ("other_entity", {"weighed": [(0, 0, 100, 0.7, "less_sure")]}),
        ("too_many", {"weighed": [(0, 0, 100, 0.7, "too_many")]}),
        ("rare_entity", {"weighed": [(0, 0, 100, 0.9, None)], "live": [101, 103]}),
        ("over_cap", {"weighed": [(0, 0, 100, 0.9, None)], "selected": {"max_images_per_entity": 5}}),
        ("too_many", {"weighed": [(0, 0, 100, 0.7, None)], "selected": {"max_labels_per_image": 1}}),
        ("unknown", {"weighed": [(0, 0, 100, 0.9, None)]}),  # chosen, kept by all that is known, and not there
        ("excluded_url", {"weighed": [(0, 0, 100, 0.9, None)], "rejects": {"select": [(0, "excluded_url")]}}),
        ("unknown", {"weighed": [(0, 0, 100, 0.9, None)], "rejects": {"select": [(0, "duplicate_image")]}}),
        ("other_pairs", {"pairs": [5, 9]}),
        ("unknown", {"pairs": [5, 9], "purged": True}),
        ("not_a_candidate", {"pairs": [0, 5, 9]}),
        ("not_a_candidate", {"pairs": [0, 5, 9], "rejects": {"score": [(0, "no_linked_mention")]}}),
        ("not_a_candidate", {"pairs": [0, 5, 9], "weighed": [(0, 0, 102, 0.1, "below_bar")]}),
        ("too_small", {"pairs": [0, 5, 9], "rejects": {"score": [(0, "too_small")]}}),
        ("filtered_out", {"pairs": [5, 9], "rejects": {"pairs": [(0, "filtered_out")]}}),
        ("not_in_knowledge_base", {"known": [101], "weighed": [(0, 0, 100, 0.3, "below_bar")]}),
        ("threshold", {"known": None, "weighed": [(0, 0, 100, 0.7, "below_bar")], "bar": 0.75}),
    ],
)
def test_a_label_that_went_has_the_cause_that_tables_tell(
    then: Output, tmp_path: Path, cause: str, now: dict[str, Any]
) -> None:
    """Each would be told as another one, or guessed, if one rule of causes.py were left out."""
    weighed = [*STAYS, *now.pop("weighed", [])]
    b = output(tmp_path / "b", NOW, weighed, **{"pairs": [0, 5, 9], **now})
    assert why(then, b) == {cause: 1}
    assert cause in SENTENCES or cause in {str(reason) for reason in Reason}


def test_lists_say_what_they_left_out(then: Output, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("Q100\n")
    b = output(tmp_path / "b", NOW, STAYS, pairs=[0, 5, 9], exclude=[str(tmp_path / "list.txt")])
    assert why(then, b) == {"excluded_entity": 1}
    (tmp_path / "list.txt").write_text("Q102\n")
    side = Side.of("B", *b)
    found = as_json(diff(Side.of("A", *then), side))
    assert found["labels"]["why_only_in_a"] == {"not_a_candidate": 1}
    assert any("not what the run read" in note for note in found["notes"])


def test_of_a_dataset_by_itself_causes_are_unknown(then: Output, tmp_path: Path) -> None:
    place, _ = output(tmp_path / "b", NOW, STAYS)
    found = as_json(diff(Side.of("A", *then), Side.of("B", place, None)))
    assert found["labels"]["why_only_in_a"] == {"unknown": 1}
    assert found["notes"] == ["no run's tables lie beside B: they would say why it lacks what it lacks"]
    place, _ = output(tmp_path / "c", NOW, STAYS, live=[101, 103])
    found = as_json(diff(Side.of("A", *then), Side.of("B", place, None)))
    assert found["labels"]["why_only_in_a"] == {"no_class": 1}


def test_tables_of_a_later_run_are_not_asked(then: Output, tmp_path: Path) -> None:
    """Catches: causes of a run that has begun since, told of the dataset of the run before."""
    place, run = output(tmp_path / "b", NOW, [*STAYS, (0, 0, 100, 0.3, "below_bar")])
    for commit in run.commits["select"].values():
        object.__setattr__(commit, "fingerprint", "another")
    found = as_json(diff(Side.of("A", *then), Side.of("B", place, run)))
    assert found["labels"]["why_only_in_a"] == {"unknown": 1}
    assert found["notes"] == ["the tables beside B are of another run than the dataset, and are not asked"]


def test_moves_say_from_what_to_what_and_why(then: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = output(tmp_path / "b", NOW, STAYS, pairs=[0, 5, 9])
    difference = diff(Side.of("A", *then), Side.of("B", *b), out=str(tmp_path / "out"))
    found = as_json(difference)
    assert found["labels"]["moves"] == [{"a": 100, "b": 101, "images": 1}]
    # The label that came is told as well: A has not the pair that gives it.
    assert found["labels"]["why_only_in_b"] == {"other_pairs": 1}
    assert found["labels"]["why_moved_a"] == {"not_a_candidate": 1}
    assert found["labels"]["why_moved_b"] == {"other_pairs": 1}
    rows = pq.read_table(tmp_path / "out" / "labels.parquet").to_pylist()
    assert [(r["only_in"], r["entity_id"], r["entity_in_other"], r["why"]) for r in rows] == [
        ("a", 100, 101, "not_a_candidate"),
        ("b", 101, 100, "other_pairs"),
    ]
    summary.print_difference(difference, 3)
    said = capsys.readouterr().out
    assert "Q100 entity 0  Q101 entity 1       1" in said
    assert "not_a_candidate: the pair is there, too" in said


@pytest.mark.parametrize(
    ("reason", "now"),
    [
        ("below_bar", {"weighed": [(0, 0, 100, 0.3, "below_bar")], "rejects": {"label": [(0, "below_bar")]}}),
        (
            "threshold",
            {"weighed": [(0, 0, 100, 0.7, "below_bar")], "rejects": {"label": [(0, "below_bar")]}, "bar": 0.75},
        ),
        ("rare_entity", {"weighed": [(0, 0, 100, 0.9, None)], "rejects": {"select": [(0, "rare_entity")]}}),
        ("over_cap", {"weighed": [(0, 0, 100, 0.9, None)], "rejects": {"select": [(0, "over_cap")]}}),
        ("excluded_image", {"weighed": [(0, 0, 100, 0.9, None)], "rejects": {"select": [(0, "excluded_image")]}}),
        ("no_linked_mention", {"rejects": {"score": [(0, "no_linked_mention")]}}),
        ("null_text", {"pairs": [9], "rejects": {"pairs": [(0, "null_text")]}}),
        ("not_in_input", {"pairs": [9]}),
        ("unknown", {"pairs": [9], "purged": True}),
        ("unknown", {}),
        # Of several pairs the one that came farthest, and no twin.
        (
            "rare_entity",
            {
                "weighed": [(0, 0, 100, 0.9, None), (0, 7, 100, 0.9, None), (0, 8, 100, 0.1, "below_bar")],
                "rejects": {
                    "select": [(0, "rare_entity"), (7, "duplicate_image")],
                    "label": [(8, "below_bar")],
                },
            },
        ),
        # The image is known by its content there, and by another pair.
        ("below_bar", {"weighed": [(0, 4, 100, 0.1, "below_bar")], "rejects": {"label": [(4, "below_bar")]}}),
    ],
)
def test_an_image_that_went_has_the_reason_of_its_pairs(
    then: Output, tmp_path: Path, reason: str, now: dict[str, Any]
) -> None:
    b = output(tmp_path / "b", {9: {103: 0.9}}, [STAYS[1], *now.pop("weighed", [])], **{"pairs": [0, 9], **now})
    assert why(then, b, "images") == {reason: 1}


def test_only_the_dataset_of_the_other_is_enough_to_ask_about_an_image(then: Output, tmp_path: Path) -> None:
    """It names the pair that stands for the image."""
    b = output(tmp_path / "b", {9: {103: 0.9}}, STAYS[1:], pairs=[0, 9], rejects={"score": [(0, "no_linked_mention")]})
    found = as_json(diff(Side.of("A", then[0], None), Side.of("B", *b)))
    assert found["images"]["why_only_in_a"] == {"no_linked_mention": 1}


@pytest.mark.parametrize(
    ("cause", "now", "labelled"),
    [
        ("not_in_knowledge_base", {"known": [101, 102, 103]}, {}),
        ("merged", {"known": [101, 102, 103], "merged": {100: 101}}, {}),
        ("rare_entity", {}, {100: 3}),
        ("no_label", {}, {100: 0}),
        ("not_proposed", {}, {}),
        ("unknown", {}, None),
    ],
)
def test_an_entity_without_a_class_has_its_cause(
    then: Output, tmp_path: Path, cause: str, now: dict[str, Any], labelled: dict[int, int] | None
) -> None:
    """labelled: pairs by entity, as the dataset's own statistics say it; None: it came without them."""
    b = output(tmp_path / "b", NOW, STAYS, pairs=[0, 9], live=[101, 102, 103], **now)
    if labelled is not None:
        table = tmp_path / "b" / "i2e" / "statistics" / "entities" / "unit=all"
        table.mkdir(parents=True)
        rows = {
            "entity_id": pa.array([*labelled], pa.int64()),
            "pairs_labelled": pa.array([*labelled.values()], pa.int64()),
        }
        pq.write_table(pa.table(rows), table / "part-0.parquet")
    found = as_json(diff(Side.of("A", *then), Side.of("B", *b)))["entities"]
    assert found["why_only_in_a"] == {cause: 1}
    assert {e["entity_id"]: e["why"] for e in found["changed"]}[100] == cause
