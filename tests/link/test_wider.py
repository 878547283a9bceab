"""What stands above a candidate: which edges count, how far, and what is no wider candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core.schemas import CANDIDATES, WIDER
from i2e_pipeline.link.wider import STEPS, VISUAL, WORTH, Above, build, wider, with_wider

HUSKY, DOG, ANIMAL, BEING, BREED, FIDO, WOLF = 1, 2, 3, 4, 5, 6, 7
ENTITIES = pa.schema(
    [
        ("entity_id", pa.int64()),
        ("name_language", pa.string()),
        ("types", pa.list_(pa.int64())),
        ("parents", pa.list_(pa.int64())),
        ("visual", pa.float32()),
    ]
)


def item(
    entity: int, parents: Sequence[int] = (), types: Sequence[int] = (), visual: float = 0.9, language: str = "en"
) -> dict[str, Any]:
    lists = {"types": list(types), "parents": list(parents)}
    return {"entity_id": entity, "name_language": language, "visual": visual, **lists}


def above(folder: Path, *items: dict[str, Any], batches: int = 1) -> Above:
    rows = pa.RecordBatch.from_pylist(sorted(items, key=lambda i: i["entity_id"]), schema=ENTITIES)
    size = -(-rows.num_rows // batches)
    build([rows.slice(start, size) for start in range(0, rows.num_rows, size)], folder / "above")
    return Above(folder / "above")


def of(known: Above, *entities: int) -> list[tuple[int, int, int]]:
    return [tuple(row) for row in np.stack(known.of(np.array(entities))).T.tolist()]


@pytest.mark.parametrize("batches", [1, 3])
def test_classes_are_walked_upward_a_bounded_number_of_steps(tmp_path: Path, batches: int) -> None:
    known = above(
        tmp_path, item(HUSKY, [DOG]), item(DOG, [ANIMAL]), item(ANIMAL, [BEING]), item(BEING, [9]), item(9),
        batches=batches,
    )  # fmt: skip
    assert STEPS == 3
    assert of(known, HUSKY, BEING) == [(0, DOG, 1), (0, ANIMAL, 2), (0, BEING, 3), (1, 9, 1)]
    assert of(known, 99) == []


def test_circles_and_repeated_edges_end_and_an_entity_is_not_above_itself(tmp_path: Path) -> None:
    known = above(tmp_path, item(HUSKY, [DOG, DOG, HUSKY]), item(DOG, [WOLF, HUSKY]), item(WOLF, [DOG]))
    assert of(known, HUSKY) == [(0, DOG, 1), (0, WOLF, 2)]
    assert of(known, HUSKY, HUSKY) == [(0, DOG, 1), (0, WOLF, 2), (1, DOG, 1), (1, WOLF, 2)]


def test_by_two_ways_the_shorter_counts(tmp_path: Path) -> None:
    known = above(tmp_path, item(HUSKY, [DOG, ANIMAL]), item(DOG, [ANIMAL]), item(ANIMAL))
    assert of(known, HUSKY) == [(0, DOG, 1), (0, ANIMAL, 1)]


def test_the_class_of_a_single_thing_counts_and_the_class_of_a_class_does_not(tmp_path: Path) -> None:
    """Catches: "dog breed" as what a photo of a husky shows, or of Fido."""
    known = above(
        tmp_path, item(HUSKY, [DOG], types=[BREED]), item(DOG, [ANIMAL]), item(ANIMAL, types=[BREED]), item(BREED),
        item(FIDO, types=[HUSKY]),
    )  # fmt: skip
    assert of(known, FIDO) == [(0, HUSKY, 1), (0, DOG, 2), (0, ANIMAL, 3)]
    assert of(known, HUSKY) == [(0, DOG, 1), (0, ANIMAL, 2)]
    assert of(known, ANIMAL) == [(0, BREED, 1)]


@pytest.mark.parametrize("unseen", [{"language": ""}, {"visual": VISUAL - 0.01}])
def test_what_has_no_name_or_is_seldom_seen_is_walked_through(tmp_path: Path, unseen: dict[str, Any]) -> None:
    known = above(tmp_path, item(HUSKY, [DOG]), item(DOG, [ANIMAL], **unseen), item(ANIMAL))
    assert of(known, HUSKY) == [(0, ANIMAL, 2)]


def test_what_is_not_in_the_knowledge_base_is_nothing(tmp_path: Path) -> None:
    assert of(above(tmp_path, item(HUSKY, [DOG, 10**15])), HUSKY) == []


def test_an_empty_knowledge_base(tmp_path: Path) -> None:
    build([], tmp_path / "above")
    assert of(Above(tmp_path / "above"), HUSKY) == []


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20))
def test_the_walk_equals_one_by_sets(tmp_path_factory: pytest.TempPathFactory, edges: list[tuple[int, int]]) -> None:
    known = above(tmp_path_factory.mktemp("a"), *(item(n, [p for c, p in edges if c == n]) for n in range(8)))
    for entity in range(8):
        seen, here = {entity}, {entity}
        found = []
        for step in range(1, STEPS + 1):
            here = {p for c, p in edges if c in here} - seen
            seen |= here
            found += [(0, p, step) for p in sorted(here)]
        assert of(known, entity) == found


# Of the candidates of texts


def candidates(*rows: tuple[int, int, int, float]) -> pa.RecordBatch:
    """text, start, entity, probability"""
    made = [
        {"text_id": bytes([text]) * 16, "start": start, "end": start + 5, "entity_id": entity, "prior": 0.5,
         "probability": probability, "rank": 1}
        for text, start, entity, probability in rows
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(made, schema=CANDIDATES)


def found(batch: pa.RecordBatch) -> list[tuple[int, ...]]:
    assert batch.schema == WIDER
    return [(r["text_id"][0], *(r[n] for n in WIDER.names[1:])) for r in batch.to_pylist()]


@pytest.fixture
def dogs(tmp_path: Path) -> Above:
    return above(tmp_path, item(HUSKY, [DOG]), item(WOLF, [ANIMAL]), item(DOG, [ANIMAL]), item(ANIMAL))


def test_each_candidate_has_what_stands_above_it(dogs: Above) -> None:
    assert found(wider(candidates((0, 3, HUSKY, 0.6), (0, 3, WOLF, 0.3), (1, 7, WOLF, 0.9)), dogs)) == [
        (0, 3, 8, DOG, HUSKY, 1), (0, 3, 8, ANIMAL, HUSKY, 2), (0, 3, 8, ANIMAL, WOLF, 1), (1, 7, 12, ANIMAL, WOLF, 1),
    ]  # fmt: skip


def test_what_the_text_may_name_itself_is_no_wider_candidate(dogs: Above) -> None:
    """In whichever mention, however unlikely; in another text it is one."""
    rows = candidates((0, 3, HUSKY, 0.6), (0, 20, DOG, 0.001), (1, 3, HUSKY, 0.6))
    assert [(r[0], r[3]) for r in found(wider(rows, dogs))] == [(0, ANIMAL), (1, DOG), (1, ANIMAL)]


def test_an_unlikely_candidate_has_none(dogs: Above) -> None:
    assert found(wider(candidates((0, 3, HUSKY, WORTH / 2), (1, 3, HUSKY, WORTH)), dogs))[0][0] == 1
    assert found(wider(candidates((0, 3, HUSKY, WORTH / 2)), dogs)) == []
    assert found(wider(candidates(), dogs)) == []


def test_the_kernel_yields_all_that_it_yielded(dogs: Above) -> None:
    batch, reject = candidates((0, 3, HUSKY, 0.6)), pa.RecordBatch.from_pydict({"reason": ["no_candidate"]})
    both = list(with_wider(lambda batches: iter([("candidates", batch), ("rejects", reject)]), dogs)(iter([])))
    assert [table for table, _ in both] == ["candidates", "wider", "rejects"]
    assert (both[0][1], both[2][1]) == (batch, reject)
