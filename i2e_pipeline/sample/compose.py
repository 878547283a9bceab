"""Compose the input of the sample run:  python -m i2e_pipeline.sample.compose --output out/sample/input

    pairs/00000.parquet …   key, url, caption, jpg, width, height, sha256 (img2dataset's names), and the truth:
                            truth_qid, mentioned_qids, hand (the art style), colliding
    dump.json.bz2           the world as a Wikidata dump
    popularity.csv          qid, sitelinks
    anchors.tsv             surface, qid, count

The same arguments give the same bytes. The folder appears at once, when complete; a second call does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.sample import dump
from i2e_pipeline.sample.draws import draw, picture
from i2e_pipeline.sample.world import ART, HERE, load_world

SEED = 20
SHARDS = 8
ROWS = 3240
"""Ordinary rows; the hard ones below come on top."""
ROW_GROUP = 64

SCHEMA = pa.schema(
    [
        ("key", pa.string()), ("url", pa.string()), ("caption", pa.string()), ("jpg", pa.binary()),
        ("width", pa.int32()), ("height", pa.int32()), ("sha256", pa.string()),
        ("truth_qid", pa.string()), ("mentioned_qids", pa.list_(pa.string())),
        ("hand", pa.string()), ("colliding", pa.bool_()),  # the art style, by its stored name
    ]
)  # fmt: skip

HARD = {
    "duplicate": 20,
    "truncated": 8,
    "empty": 5,
    "html": 6,
    "null image": 4,
    "empty caption": 6,
    "null caption": 4,
    "endless caption": 3,
}
"""Rows that every web corpus has, by kind and number. Less than 2 %: enough to fill the rejects table of a run."""
HTML = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"


def ordinary_row(number: int, seed: int = SEED) -> dict[str, Any]:
    """One row as a dict of SCHEMA's columns, key left out."""
    row = draw(seed, "scored", number)
    data, extension, width, height = picture(row)
    digest = hashlib.sha256(f"{seed}/url/{number}".encode()).hexdigest()
    return {
        "url": f"https://img-{digest[0]}.example.org/{digest[1:3]}/{digest[3:19]}.{extension}",
        "caption": row.caption.text, "jpg": data,
        "width": width, "height": height, "sha256": hashlib.sha256(data).hexdigest(), "truth_qid": row.truth.id,
        "mentioned_qids": list(row.caption.mentioned), "hand": row.style, "colliding": row.caption.colliding,
    }  # fmt: skip


def _spoilt(row: dict[str, Any], data: bytes | None) -> dict[str, Any]:
    """The row with other bytes, which show nothing: the truth is unknown."""
    digest = hashlib.sha256(data).hexdigest() if data is not None else None
    return row | {"jpg": data, "sha256": digest, "truth_qid": None, "hand": None, "colliding": False}


def hard_row(kind: str, number: int, seed: int = SEED) -> dict[str, Any]:
    """One row of a kind of HARD, made from ordinary draws that the shards do not hold."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    row = ordinary_row(1_000_000 + 1000 * list(HARD).index(kind) + number, seed)
    match kind:
        case "duplicate":
            # The same bytes under another address, with the same thing named: a run must count them as one image.
            twin = next(
                n
                for n in range(number * 40, ROWS)
                if draw(seed, "scored", n).truth.id in draw(seed, "scored", n).caption.mentioned
            )
            return ordinary_row(twin, seed) | {"url": row["url"]}
        case "truncated":
            return _spoilt(row, row["jpg"][: rng.randint(40, len(row["jpg"]) // 3)])
        case "empty":
            return _spoilt(row, b"")
        case "html":
            return _spoilt(row, HTML + f"<!-- {number} -->".encode())
        case "null image":
            return _spoilt(row, None)
        case "empty caption":
            return row | {"caption": rng.choice(("", " ", "\n")), "mentioned_qids": [], "colliding": False}
        case "null caption":
            return row | {"caption": None, "mentioned_qids": [], "colliding": False}
        case _:
            return row | {"caption": row["caption"] + " lorem ipsum dolor sit amet" * 4000}


def plan(rows: int, shards: int, seed: int = SEED) -> list[list[tuple[str, int]]]:
    """The rows of each shard, as (kind, number), in an order that mixes the hard ones in."""
    every = [("", n) for n in range(rows)] + [(kind, n) for kind, count in HARD.items() for n in range(count)]
    random.Random(f"{seed}/plan").shuffle(every)
    return [every[i::shards] for i in range(shards)]


def write_shard(path: Path, rows: list[tuple[str, int]], first_key: int, seed: int = SEED) -> int:
    """Write one Parquet file in row groups of ROW_GROUP; returns the number of its rows."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(rows), ROW_GROUP):
            batch = []
            for i, (kind, number) in enumerate(rows[start : start + ROW_GROUP]):
                row = hard_row(kind, number, seed) if kind else ordinary_row(number, seed)
                batch.append(row | {"key": f"{first_key + start + i:09d}"})
            writer.write_table(pa.Table.from_pylist(batch, SCHEMA))
    return len(rows)


def fingerprint(rows: int, shards: int, seed: int) -> str:
    """A digest of everything that the output depends on: arguments, world, drawings, these scripts."""
    digest = hashlib.sha256(json.dumps([rows, shards, seed, HARD]).encode())
    names = ("art", "captions", "compose", "draws", "dump", "scene", "templates", "world")
    for path in [
        *(HERE / f"{n}.py" for n in names),
        *sorted((HERE / "world").glob("*.jsonl")),
        *sorted(ART.glob("*.webp")),
        ART / "index.json",
    ]:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def mark(rows: int = ROWS, shards: int = SHARDS, seed: int = SEED) -> bytes:
    """The manifest of a composed folder, which says what it was made of."""
    made_of = {
        "fingerprint": fingerprint(rows, shards, seed),
        "rows": rows + sum(HARD.values()),
        "shards": shards,
        "seed": seed,
    }
    return (json.dumps(made_of, indent=1) + "\n").encode()


def compose(output: Path, rows: int = ROWS, shards: int = SHARDS, seed: int = SEED, processes: int = 2) -> bool:
    """Write the folder. False where it was already there with the same content."""
    made_of = mark(rows, shards, seed)
    manifest = output / "manifest.json"
    if manifest.exists() and manifest.read_bytes() == made_of:
        return False
    if output.exists() and not manifest.exists() and any(output.iterdir()):
        raise SystemExit(
            f"compose: {output} is not a sample input (it has no manifest.json): use another --output, or remove it."
        )
    with files.fresh_folder(output) as work:
        (work / "pairs").mkdir()
        paths = [work / "pairs" / f"{i:05d}.parquet" for i in range(shards)]
        shard_rows = plan(rows, shards, seed)
        firsts = [sum(map(len, shard_rows[:i])) for i in range(shards)]
        tasks = list(zip(paths, shard_rows, firsts, strict=True))
        if processes > 1:
            # spawn: the caller may hold threads (Spark, torch) that do not survive a fork
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                jobs = [pool.submit(write_shard, *task, seed) for task in tasks]
                for job in jobs:
                    job.result()
        else:
            for task in tasks:
                write_shard(*task, seed)
        world = load_world()
        dump.write_dump(world, work / "dump.json.bz2")
        dump.write_popularity(world, work / "popularity.csv")
        dump.write_anchors(world, work / "anchors.tsv")
        (work / "manifest.json").write_bytes(made_of)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Compose the input of the sample run.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--processes", type=int, default=2)
    a = parser.parse_args()
    fresh = compose(a.output, a.rows, a.shards, a.seed, a.processes)
    print(f"sample input {'written to' if fresh else 'already in'} {a.output}")


if __name__ == "__main__":
    main()
