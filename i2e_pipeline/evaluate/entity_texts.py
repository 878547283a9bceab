"""Vectors of the texts of millions of entities, a block at a time, kept on disk as they are made.

Reads    a file of JSON lines, an entity each: Wiki6M_ver_1_0.jsonl (wikidata_id, wikipedia_title, wikipedia_summary,
         wikipedia_content), Wiki6M_ver_1_0_title_only.jsonl, or lists of that form
Writes   FOLDER/entities-KEY/part-000000.npz …: ids int64 (C,), vectors float32 (C, D) of norm 1 of BLOCK lines each;
         KEY names model, file and kind of text

A part that is there is read and not made again, so an evaluation that was stopped goes on where it was. In memory there
is one block.

Legend: C candidates of a block, D width.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from i2e_pipeline.core import files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.evaluate.encoders import ImageEncoder
from i2e_pipeline.evaluate.image_to_entity import entity_texts
from i2e_pipeline.evaluate.top_one import Block
from i2e_pipeline.inputs.tables import json_lines

log = logging.getLogger(__name__)

VERSION = 1
"""Raised whenever this file gives other vectors for the same model and entities: older parts are then not read."""
BLOCK = 1 << 15
"""Lines of a part."""
_IDS = ("wikidata_id", "entity_id", "qid", "id")
_NAMES = ("wikipedia_title", "label", "name", "content")
_DESCRIPTIONS = ("wikipedia_summary", "wikipedia_content", "description")
"""Keys that a line may have, the first that is there counts."""
_LONGEST = 300
"""Letters of a description that a text takes: more than any text tower reads, and less than an article."""
_QID = re.compile(r"Q([1-9][0-9]{0,17})")


class EntitiesError(I2EError, ValueError):
    """A list of entities that cannot be read; the message names the file, the line and the way out."""


def blocks(
    encoder: ImageEncoder, path: str, described: bool, folder: Path, block_lines: int = BLOCK
) -> Iterator[Block]:
    """The entities of a file in their order, with the vectors of their texts.

    described   whether a text has the description behind the name
    folder      where the parts go
    Raises EntitiesError for a line that names no entity, or whose vector is not finite, ShardError for one that is no
    JSON object.
    """
    assert encoder.texts is not None
    if files.info(path) is None:
        raise EntitiesError(f"{path}: no such file; name a list of entities by evaluate.oven.entities")
    key = digest([VERSION, encoder.fingerprint, files.fingerprint(path), described, block_lines])
    place = folder / f"entities-{key[:20]}"
    made, started = 0, time.perf_counter()
    with closing(json_lines(path)) as lines:
        for number in count():
            some = [(line, row) for line, _, row in islice(lines, block_lines)]
            if not some:
                return
            part = place / f"part-{number:06d}.npz"
            block = _read(part, encoder.width)
            if block is None:
                block = _make(encoder, path, some, described)
                _write(part, block)
                made += len(block.ids_C)
                rate, so_far = made / (time.perf_counter() - started), number * block_lines + len(some)
                log.info(f"{encoder.label:<16}{so_far:,} entities, {rate:,.0f} texts a second")
            yield block


def _make(encoder: ImageEncoder, path: str, lines: Sequence[tuple[int, Mapping[str, Any]]], described: bool) -> Block:
    ids, names, descriptions = [], [], []
    for number, row in lines:
        entity = _first(row, _IDS)
        match = _QID.fullmatch(entity)
        name = _first(row, _NAMES)
        if match is None or not name:
            wrong = f"{entity!r} is no Wikidata id" if match is None else f"{entity} has no name"
            raise EntitiesError(
                f"{path}, line {number}: {wrong}: wanted are wikidata_id and wikipedia_title (or id and name); "
                "mend the line or leave it out"
            )
        ids.append(int(match[1]))
        names.append(name)
        descriptions.append(_first(row, _DESCRIPTIONS)[:_LONGEST] or None if described else None)
    assert encoder.texts is not None
    vectors_CD = encoder.texts(entity_texts(names, descriptions))
    finite_C = np.isfinite(vectors_CD).all(axis=1)
    if not finite_C.all():
        odd = int(finite_C.argmin())
        raise EntitiesError(
            f"{path}, line {lines[odd][0]}: {encoder.label} gives {names[odd]!r} a vector that is not finite: the "
            "weights are damaged, or evaluate.dtype=bfloat16 is too narrow for this model"
        )
    return Block(np.array(ids, dtype=np.int64), vectors_CD)


def _first(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The first text that is there; halves of characters, which no tokenizer takes, are replaced."""
    found = next((str(row[key]) for key in keys if row.get(key)), "")
    return found.encode("utf-8", "replace").decode("utf-8").strip()


def _read(path: Path, width: int) -> Block | None:
    """What the part holds; None where there is none, or it is not whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            ids_C, vectors_CD = stored["ids"], stored["vectors"]
    except Exception:  # whatever zipfile and numpy stumble on in a file that was cut or changed
        return None
    whole = vectors_CD.shape == (len(ids_C), width) and vectors_CD.dtype == np.float32 and ids_C.dtype == np.int64
    return Block(ids_C, vectors_CD) if whole else None


def _write(path: Path, block: Block) -> None:
    with files.fresh_file(path) as fresh, fresh.open("wb") as file:
        np.savez(file, ids=block.ids_C, vectors=block.vectors_CD)
