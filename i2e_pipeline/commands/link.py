"""`i2e link`: mentions and candidates of texts, by the stages and tables of a run.

A file becomes one unit of pairs without images. The stages pairs, extract and link run on it. What they wrote is read
back and then removed. Texts of the command line, and those that are to be explained, are linked in this process without
Spark (linking.py).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.commands.linking import linked
from i2e_pipeline.core import files
from i2e_pipeline.core.ids import row_ids
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.units import InputError, InputFile, Unit
from i2e_pipeline.extract.text import clean_with_offsets, read_texts

log = logging.getLogger(__name__)

_NOT_WRITTEN = (".xz", ".zip", ".7z", ".tar", ".tgz", ".br", ".lzma", ".z", ".snappy")


def link_texts(pipeline: Pipeline, texts: str, links: str) -> int:
    """Read {id, text} lines, write {id, mentions} lines in the same order; returns their number.

    Lines of one `group` belong together, as `pairs.group_column` says of pairs; a line may have none. Offsets are
    into the text as it stands in the file. Both files may be compressed, as their names say (.gz, .bz2, .zst,
    .lz4). Raises InputError, naming file and line, for a line that is not as said. Holds the texts and links of the
    file in memory.
    """
    check_output(links)
    lines = read_lines(texts)
    with as_unit(pipeline, lines, "candidates") as (run, unit):
        _write(links, lines, _found(run, unit), pipeline.config.extract.max_characters)
    return len(lines)


def check_output(links: str) -> None:
    """Raises InputError for a path to which `write_lines` cannot write."""
    if links.lower().endswith(_NOT_WRITTEN):
        raise InputError(
            f"--output {links}: of compressed files .gz, .bz2, .zst and .lz4 are written: take one of them"
        )
    if files.is_folder(links):
        raise InputError(f"--output {links} is a folder: name a file")


def write_lines(path: str, links: Iterable[Mapping[str, Any]]) -> None:
    """Write {id, mentions} lines, compressed as the name says."""
    out = [json.dumps(link, ensure_ascii=False) for link in links]
    files.write_bytes(path, ("\n".join(out) + "\n").encode())


@contextmanager
def as_unit(pipeline: Pipeline, texts: Sequence[Mapping[str, Any]], table: str) -> Iterator[tuple[Run, str]]:
    """The tables up to `table` of texts, as of one unit that is no part of the dataset.

    texts   id, text, and where it has one its group

    Stages from outside that leave texts, mentions or candidates out, or replace them, take part; what looks at images
    or at all units at once does not.
    """
    # Only these columns exist in the made shard, whatever those of the config's pairs are called and tell apart.
    columns = {"key_column": "key", "url_column": "url", "text_column": "text", "image_column": "image", "where": None}
    columns["group_column"] = "group" if any(row.get("group") is not None for row in texts) else None
    config = pipeline.config
    config = config.model_copy(update={"pairs": config.pairs.model_copy(update=columns)})
    upto = pipeline.stages[: pipeline.names.index(pipeline.writer(table)) + 1]
    wanted = [
        s for s in (*upto, *(s for s in pipeline.stages if table in (s.narrows, s.replaces))) if not s.sees_images
    ]
    # What works on all units at once knows no text that is in none of them.
    of_units = [s for s in wanted if s.scope == "whole" and pipeline.depends_on_units(s)]
    for stage in of_units:
        log.warning("%s works on all units of the dataset at once, and takes no part here", stage.name)
    with pipeline.exclusive():
        linking = pipeline.with_config(config)
        run, _ = linking.run([s.name for s in wanted if s.scope == "whole" and s not in of_units])
        shard = pipeline.tables.path("_texts", f"{os.getpid()}-{time.time_ns()}.parquet")
        try:
            unit = _unit(shard, texts)
            with linking.beside(run, [s for s in wanted if s.scope == "unit"], unit) as beside:
                yield beside, unit.name
        finally:
            files.remove(shard)


def read_lines(path: str) -> list[dict[str, Any]]:
    """The {id, text}, and the group where there is one, of a file's lines. Raises InputError, naming the line, for one
    that is not as said."""
    lines = list(_lines(path))
    if not lines:
        raise InputError(f'--input {path} holds no line {{"id": …, "text": …}}')
    return lines


def _lines(path: str) -> Iterator[dict[str, Any]]:
    if not files.exists(path):
        raise InputError(f"--input {path}: no such file")
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise InputError(
            f"--input {path} cannot be read ({error}): name a whole file, compressed as its name says, or not"
        ) from None
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            read = {"id": row["id"], "text": row["text"]}
            read |= {"group": str(row["group"])} if row.get("group") is not None else {}
            json.dumps(read["id"], ensure_ascii=False).encode()
            yield read
        except UnicodeEncodeError:
            raise InputError(
                f"{path}, line {number}: the id {row['id']!a} holds half of a character (a lone surrogate), "
                "which no file in UTF-8 can hold: write the character whole, or as U+FFFD"
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f'{path}, line {number}: not {{"id": …, "text": …}} ({error!r})') from None


def _unit(shard: str, texts: Sequence[Mapping[str, Any]]) -> Unit:
    table = pa.table(
        {
            "key": pa.array([str(row["id"]) for row in texts], pa.string()),
            "url": pa.nulls(len(texts), pa.string()),
            "text": pa.array([_valid(row["text"]) for row in texts], pa.string()),
            "group": pa.array([_valid(row.get("group")) for row in texts], pa.string()),
            "image": pa.nulls(len(texts), pa.binary()),
        }
    )
    files.make_folder(shard.rpartition("/")[0])
    filesystem, inner = files.open_filesystem(shard)
    pq.write_table(table, inner, filesystem=filesystem)
    digest = files.fingerprint(shard)
    return Unit(f"t-{digest[:12]}", (InputFile(0, shard, 0, 0, digest, len(texts)),))


def _valid(text: Any) -> str | None:
    return None if text is None else str(text).encode("utf-8", "replace").decode()


def _found(run: Run, unit: str) -> dict[int, list[dict[str, Any]]]:
    """Mentions with candidates, in offsets of the cleaned text, by row."""

    def rows(table: str) -> list[dict[str, Any]]:
        return list(run.read(table, unit).toArrow().to_pylist())

    candidates = defaultdict(list)
    for c in sorted(rows("candidates"), key=lambda c: c["rank"]):
        candidates[c["text_id"], c["start"], c["end"]].append(
            {"entity_id": c["entity_id"], "probability": round(c["probability"], 6)}
        )
    mentions = defaultdict(list)
    for m in sorted(rows("mentions"), key=lambda m: (m["start"], m["end"])):
        mentions[m["text_id"]].append(
            {
                "start": m["start"],
                "end": m["end"],
                "label": m["label"],
                "candidates": candidates[m["text_id"], m["start"], m["end"]],
            }
        )
    return {p["row"]: mentions[p["text_id"]] for p in rows("pairs")}


def _write(path: str, lines: list[dict[str, Any]], found: dict[int, list[dict[str, Any]]], max_characters: int) -> None:
    write_lines(
        path,
        (
            {"id": line["id"], "mentions": _in_text(line["text"], found.get(row, []), max_characters)}
            for row, line in enumerate(lines)
        ),
    )


def _in_text(given: Any, mentions: Sequence[dict[str, Any]], max_characters: int) -> list[dict[str, Any]]:
    """Mentions of a cleaned text, in offsets of the text as it was given."""
    if not mentions:
        return []
    text = _valid(given) or ""
    spans = clean_with_offsets(text, max_characters)[1]
    told = []
    for m in mentions:
        start, end = int(spans[m["start"], 0]), int(spans[m["end"] - 1, 1])
        place = {"start": start, "end": end, "surface": text[start:end]}
        told.append({**place, **{what: value for what, value in m.items() if what not in place}})
    return told


def explain_texts(pipeline: Pipeline, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each {id, text} what it names and why, without Spark: id, text, cleaned, `rejected` (why no name is looked for
    in it; None: it is), and what `linked` tells, in offsets of the text as it was given.

    Raises NoKnowledgeBase where the output holds none. Reads the tables as they lie there, whatever config made them.
    """
    run = pipeline.as_it_is()
    before = [t for s in pipeline.stages[: pipeline.names.index(pipeline.writer("candidates")) + 1] for t in s.tables]
    for stage in pipeline.stages:
        if stage.narrows in before:
            log.warning("%s leaves rows of %s out in a run, and takes no part here", stage.name, stage.narrows)
        if stage.replaces in before:
            log.warning("%s replaces %s in a run, and takes no part here", stage.name, stage.replaces)
    limit = pipeline.config.extract.max_characters
    rows = {
        "shard": pa.array([0] * len(lines), pa.int32()),
        "row": pa.array(range(len(lines)), pa.int64()),
        "pair_id": row_ids(bytes(16), np.arange(len(lines))),
        "key": pa.nulls(len(lines), pa.string()),
        "url": pa.nulls(len(lines), pa.string()),
        "caption": pa.array([_valid(line["text"]) for line in lines], pa.string()),
        "group": pa.array([_valid(line.get("group")) for line in lines], pa.string()),
    }
    read: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for table, batch in read_texts([pa.RecordBatch.from_pydict(rows)], limit):
        read[table] += batch.to_pylist()
    texts = {t["text_id"]: t["text"] for t in read["texts"]}
    text_of = {p["row"]: p["text_id"] for p in read["pairs"]}
    refused = {r["row"]: r["reason"] for r in read["rejects"]}
    groups = {t["text_id"]: t["group_id"] for t in read["texts"]}
    found = linked(run, texts, groups) if texts else {}
    told = []
    for row, line in enumerate(lines):
        text_id = text_of.get(row)
        parts = found[text_id] if text_id is not None else {"mentions": [], "overlooked": []}
        given = {what: _in_text(line["text"], spans, limit) for what, spans in parts.items()}
        cleaned = texts[text_id] if text_id is not None else None
        told.append({**line, "cleaned": cleaned, "rejected": refused.get(row), **given})
    return told


def plain(explained: dict[str, Any]) -> dict[str, Any]:
    """A text's links as the lines of `link_texts` hold them."""
    return {
        "id": explained["id"],
        "mentions": [
            {
                "start": m["start"],
                "end": m["end"],
                "surface": m["surface"],
                "label": m["label"],
                "candidates": [
                    {"entity_id": c["entity_id"], "probability": round(float(np.float32(c["probability"])), 6)}
                    for c in m["candidates"]
                    if c["dropped"] is None
                ],
            }
            for m in explained["mentions"]
        ],
    }
