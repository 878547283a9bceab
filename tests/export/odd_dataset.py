"""A published dataset whose rows are as odd as the web's: formats, keys and texts that end names, cells and lines."""

from __future__ import annotations

import csv
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from i2e_pipeline.commands.export import export
from i2e_pipeline.core.splits import TEST, TRAIN, VALIDATION
from tests.small_models import picture, stored
from tests.train.small_dataset import image_row, write_dataset

FORMATS = ("JPEG", "PNG", "WEBP")
TEXTS = (
    "plain words",
    'tabs\tand "quotes", a comma; a\nline and\r another',
    "NA",
    "null",
    "a \x01control\x1b character, \u2028 a separator, \ufffd and \U0001f98a",
    " = leading, trailing \\ ",
    "007",
)
KEYS = ("000000001", "a/b.c/d.tar", None, "../../up\nand down", "x" * 300, "", ".hidden.jpg")


def odd_row(number: int, **overrides: Any) -> dict[str, Any]:
    split = (TRAIN, TRAIN, TRAIN, VALIDATION, TEST)[number % 5]
    row = image_row(
        number,
        bytes=overrides.pop("bytes", stored(picture(number), FORMATS[number % 3])),
        alt_text=f"{TEXTS[number % len(TEXTS)]}",
        key=KEYS[number % len(KEYS)],
        url=f"https://example.org/{number}?a=\t&b=%00" if number % 4 else None,
        labels=[(number % 4, 0.5), ((number + 1) % 4, 0.75)] if number % 2 else [(number % 4, 0.9)],
        split=split,
    )
    return row | overrides


def write_odd(folder: Path, rows: int = 60, **options: Any) -> str:
    return write_dataset(folder, [odd_row(n) for n in range(rows)], units=3, **options)


def large_row(number: int) -> dict[str, Any]:
    """A picture with half a megabyte behind its end, which decoders pass over."""
    return odd_row(number, bytes=stored(picture(number)) + hashlib.shake_128(bytes([number])).digest(500_000))


def facts(folder: str | Path, split: str | None = None) -> dict[str, tuple[str, str, list[tuple[int, int, float]]]]:
    """By image_id, what an export must hold of each row: digest of the image, alt-text, labels."""
    found = {}
    for file in sorted(Path(folder).glob("images/*/*.parquet")):
        for row in pq.read_table(file, partitioning=None).to_pylist():
            if split in (None, row["split"]):
                found[row["image_id"]] = (digest(row["image"]["bytes"]), row["alt_text"], labels(row["labels"]))
    return found


def held(folder: Path, form: str) -> dict[str, tuple[str, str, list[tuple[int, int, float]]]]:
    """The same of an export, by Python's own means."""
    if form == "parquet":
        return facts(folder)
    found = {}
    if form == "hf":
        for row in pq.read_table(folder / "data").to_pylist():
            found[row["image_id"]] = (digest(row["image"]["bytes"]), row["alt_text"], labels(row["labels"]))
    elif form == "webdataset":
        for path in sorted(folder.glob("*/*.tar")):
            with tarfile.open(path) as tar:
                members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
            for name, stored_bytes in members.items():
                key, _, suffix = name.partition(".")
                if suffix not in ("txt", "json"):
                    told = labels(json.loads(members[f"{key}.json"])["labels"])
                    found[key] = (digest(stored_bytes), members[f"{key}.txt"].decode(), told)
    else:
        for table in sorted(folder.glob("*.tsv")):
            with table.open(newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines, delimiter="\t"):
                    stored_bytes = (folder / row["filepath"]).read_bytes()
                    found[row["image_id"]] = (digest(stored_bytes), row["title"], labels(json.loads(row["labels"])))
    return found


def digest(stored_bytes: bytes) -> str:
    return hashlib.sha256(stored_bytes).hexdigest()


def labels(told: list[dict[str, Any]]) -> list[tuple[int, int, float]]:
    return [(one["entity_id"], one["class_index"], round(one["score"], 6)) for one in told]


def tree(folder: str | Path) -> dict[str, str]:
    """Digest of every file by its path."""
    base = Path(folder)
    return {str(p.relative_to(base)): digest(p.read_bytes()) for p in sorted(base.rglob("*")) if p.is_file()}


def small_shards(dataset: str, to: Path, form: str, **options: Any) -> Path:
    """The folder of an export."""
    if form != "parquet":
        options.setdefault("shard_mb", 1)
    return Path(export(dataset, str(to), form, **options).target)
