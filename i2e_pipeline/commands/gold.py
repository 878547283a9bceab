"""Gold links: texts in which somebody has said what the names mean.

Lines {id, text, mentions: [{start, end, qid}]}, qid "Q42", or null for "none of these"; offsets are into the text as it
stands in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.units import InputError
from i2e_pipeline.extract.text import clean_with_offsets

Gold = dict[tuple[int, int, int], int | None]
"""(row, start, end), in the cleaned text, to the entity; None: none of the knowledge base's."""


def followed(gold: Gold, run: Run) -> Gold:
    """Gold links of merged items lead to the items that they are now."""
    ids = pa.array(sorted({entity for entity in gold.values() if entity is not None}), pa.int64())
    rows = run.tables.where("kb/redirects", run.commits_of("kb/redirects"), pc.field("entity_id").isin(ids))
    led = dict(zip(*(rows[name].to_pylist() for name in ("entity_id", "into")), strict=True))
    return {span: None if entity is None else led.get(entity, entity) for span, entity in gold.items()}


def gold_lines(path: str) -> Iterator[dict[str, Any]]:
    if not files.exists(path):
        raise InputError(f"{path}: no such file")
    for number, line in enumerate(files.read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            spans = [(int(m["start"]), int(m["end"]), _number(m["qid"])) for m in row["mentions"]]
            yield {"text": str(row["text"]), "mentions": spans}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path}, line {number}: not {{"text": …, "mentions": [{{"start", "end", "qid"}}]}} ({error!r})'
            ) from None


def _number(qid: str | None) -> int | None:
    return None if qid is None else int(str(qid).lstrip("Q"))


def in_cleaned(lines: Sequence[dict[str, Any]], max_characters: int) -> Gold:
    """Gold spans in the offsets of the text as the pipeline cleans it; what cleaning cut is left out."""
    found: Gold = {}
    for n, row in enumerate(lines):
        _, spans = clean_with_offsets(row["text"], max_characters)
        starts = {int(start): at for at, (start, _) in enumerate(spans)}
        ends = {int(end): at + 1 for at, (_, end) in enumerate(spans)}
        for start, end, entity in row["mentions"]:
            if start in starts and end in ends:
                found[n, starts[start], ends[end]] = entity
    return found
