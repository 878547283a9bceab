"""The memory-mapped words of each entity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from i2e_pipeline.link.context import Context, build, tokens
from wikidata.types import TYPES, UNKNOWN


def entities(*rows: tuple[int, str | None], coarse_type: str | None = None, name_case: int = 0) -> pa.RecordBatch:
    schema = pa.schema(
        [
            ("entity_id", pa.int64()),
            ("description", pa.string()),
            ("coarse_type", pa.string()),
            ("name_case", pa.int8()),
        ]
    )
    made: list[dict[str, Any]] = [
        {"entity_id": i, "description": d, "coarse_type": coarse_type, "name_case": name_case} for i, d in rows
    ]
    return pa.RecordBatch.from_pylist(made, schema=schema)


def test_words_are_those_of_the_description(tmp_path: Path) -> None:
    build([entities((7, "country in Asia"), (43, None)), entities((90, "large birds"))], tmp_path / "c")
    context = Context(tmp_path / "c")
    rows = context.rows(np.array([90, 8, 7, 43]))
    assert rows.tolist() == [2, -1, 0, 1]
    places, words = context.words(rows)
    assert set(words[places == 0].tolist()) == tokens("large bird")
    assert set(words[places == 2].tolist()) == tokens("country Asia")
    assert set(places.tolist()) == {0, 2}


def test_types_and_spelling_are_those_of_the_entity(tmp_path: Path) -> None:
    build([entities((7, "bird"), coarse_type="taxon", name_case=1), entities((9, None), name_case=-1)], tmp_path / "c")
    context = Context(tmp_path / "c")
    rows = context.rows(np.array([9, 8, 7]))
    assert context.types(rows).tolist() == [UNKNOWN, UNKNOWN, TYPES.code("taxon")]
    assert context.cases(rows).tolist() == [-1, 0, 1]


def test_rare_words_weigh_more(tmp_path: Path) -> None:
    build([entities(*((i, "a film" if i else "a walrus") for i in range(100)))], tmp_path / "c")
    context = Context(tmp_path / "c")
    film, walrus = (context.rarity(np.array(sorted(tokens(w)), dtype=np.uint32))[0] for w in ("film", "walrus"))
    assert walrus > film >= 0


def test_the_file_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    rows = entities((1, "one thing"), (2, "another"), (3, None), (4, "a third"))
    build([rows], tmp_path / "a")
    build([rows.slice(0, 1), rows.slice(0, 0), rows.slice(1)], tmp_path / "b")
    assert Context(tmp_path / "a").fingerprint == Context(tmp_path / "b").fingerprint
    assert not list(tmp_path.glob("*.tmp"))


def test_unsorted_entities_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sort them first"):
        build([entities((2, None)), entities((1, None))], tmp_path / "c")


def test_an_empty_context_knows_nobody(tmp_path: Path) -> None:
    build([], tmp_path / "c")
    context = Context(tmp_path / "c")
    rows = context.rows(np.array([42]))
    assert rows.tolist() == [-1]
    assert len(context.words(rows)[1]) == 0
    assert context.types(rows).tolist() == [UNKNOWN]
    assert context.cases(rows).tolist() == [0]
