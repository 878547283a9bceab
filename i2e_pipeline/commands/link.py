"""`i2e link`: mentions and candidates of texts in a file, by the stages and tables of the main job.

The file becomes one unit of pairs without images; pairs, extract and link run on it; what they wrote is read back and
dropped again.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.engine.pipeline import exclusive, inspect, run_stages
from i2e_pipeline.engine.session import build
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.units import InputError, InputFile, Unit
from i2e_pipeline.extract.stages import Extract, Pairs
from i2e_pipeline.extract.text import clean_with_offsets
from i2e_pipeline.link.stages import Link


def link_texts(config: Config, texts: str, links: str, say: Callable[[str], None]) -> int:
    """Read {id, text} lines, write {id, mentions} lines in the same order; returns their number.

    Offsets are into the text as it stands in the file. Raises InputError, naming file and line, for a line that is not
    as said. Holds the texts and links of the file in memory.
    """
    lines = list(_read(texts))
    # Only these columns exist in the made shard, whatever those of the config's pairs are called.
    columns = {"key_column": "key", "url_column": "url", "text_column": "text", "image_column": "image"}
    config = config.model_copy(update={"pairs": config.pairs.model_copy(update=columns)})
    tables = Tables(config.output, config.storage, lambda: build(config))
    with exclusive(config.output):
        run, _ = run_stages(config, tables, ["knowledge_base", "surfaces"], say=say)
        shard = tables.path("_texts", f"{os.getpid()}-{time.time_ns()}.parquet")
        unit = _unit(shard, lines)
        run.units = [unit]
        try:
            for stage in (Pairs(), Extract(), Link()):
                inspect(run, stage)
                stage.prepare(run)
                run.commits[stage.name] = {unit.name: stage.carry_out(run, unit.name)}
            _write(links, lines, _found(run, unit.name), config.extract.max_characters)
        finally:
            for name in ("pairs", "extract", "link"):
                tables.discard(name, unit.name)
            files.remove(shard)
    return len(lines)


def _read(path: str) -> Iterator[dict[str, Any]]:
    if not files.exists(path):
        raise InputError(f"--input {path}: no such file")
    for number, line in enumerate(files.read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield {"id": row["id"], "text": row["text"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{path}, line {number}: not {{"id": …, "text": …}} ({error!r})') from None


def _unit(shard: str, lines: list[dict[str, Any]]) -> Unit:
    table = pa.table(
        {
            "key": pa.array([str(row["id"]) for row in lines], pa.string()),
            "url": pa.nulls(len(lines), pa.string()),
            "text": pa.array([_valid(row["text"]) for row in lines], pa.string()),
            "image": pa.nulls(len(lines), pa.binary()),
        }
    )
    files.make_folder(shard.rpartition("/")[0])
    filesystem, inner = files.open_filesystem(shard)
    pq.write_table(table, inner, filesystem=filesystem)
    digest = files.fingerprint(shard)
    return Unit(f"t-{digest[:12]}", (InputFile(0, shard, 0, 0, digest, len(lines)),))


def _valid(text: Any) -> str | None:
    return None if text is None else str(text).encode("utf-8", "replace").decode()


def _found(run: Any, unit: str) -> dict[int, list[dict[str, Any]]]:
    """Mentions with candidates, in offsets of the cleaned text, by row."""

    def rows(table: str, stage: str) -> list[dict[str, Any]]:
        return list(run.tables.load(table, run.committed(stage, unit)).to_pylist())

    candidates = defaultdict(list)
    for c in sorted(rows("candidates", "link"), key=lambda c: c["rank"]):
        candidates[c["text_id"], c["start"], c["end"]].append(
            {"entity_id": c["entity_id"], "probability": round(c["probability"], 6)}
        )
    mentions = defaultdict(list)
    for m in sorted(rows("mentions", "extract"), key=lambda m: (m["start"], m["end"])):
        mentions[m["text_id"]].append(
            {
                "start": m["start"],
                "end": m["end"],
                "label": m["label"],
                "candidates": candidates[m["text_id"], m["start"], m["end"]],
            }
        )
    return {p["row"]: mentions[p["text_id"]] for p in rows("pairs", "pairs")}


def _write(path: str, lines: list[dict[str, Any]], found: dict[int, list[dict[str, Any]]], max_characters: int) -> None:
    out = []
    for row, line in enumerate(lines):
        text, spans = line["text"] or "", None
        mentions = []
        for m in found.get(row, []):
            if spans is None:
                spans = clean_with_offsets(_valid(text) or "", max_characters)[1]
            start, end = int(spans[m["start"], 0]), int(spans[m["end"] - 1, 1])
            mentions.append(
                {
                    "start": start,
                    "end": end,
                    "surface": text[start:end],
                    "label": m["label"],
                    "candidates": m["candidates"],
                }
            )
        out.append(json.dumps({"id": line["id"], "mentions": mentions}, ensure_ascii=False))
    files.write_bytes(path, ("\n".join(out) + "\n").encode())
