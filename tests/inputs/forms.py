"""One set of pairs in every form that people keep it in, each with the settings that read it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Pair:
    key: str
    url: str
    caption: str
    image: bytes

    @property
    def facts(self) -> dict[str, Any]:
        """What else a source says of it, the same in every form; KEPT holds it as the dataset does."""
        n = zlib.crc32(self.key.encode())
        return {
            "similarity": None if n % 5 == 0 else (n % 1000) / 1000,
            "license": ("cc-by 2.0", "007", None, "?")[n % 4],
            "watermark": n % 100,
            "seen": n % 3 == 0,
            "tags": [f"tag {n % 2}", "ünder"] if n % 2 else None,
        }


FACTS = {
    "similarity": pa.float64(),
    "license": pa.string(),
    "watermark": pa.int64(),
    "seen": pa.bool_(),
    "tags": pa.list_(pa.string()),
}
KEPT = {**FACTS, "tags": pa.string()}
"""As the dataset has them: lists are JSON."""


def kept_of(pair: Pair) -> dict[str, Any]:
    tags = pair.facts["tags"]
    said = None if tags is None else json.dumps(tags, ensure_ascii=False, separators=(",", ":"))
    return {**pair.facts, "tags": said}


def _cells(pair: Pair) -> list[str]:
    """The facts as a table of texts has them."""
    return ["" if value is None else str(value) for value in kept_of(pair).values()]


def pairs_of(parquet: Path) -> list[Pair]:
    """The rows of an img2dataset file that have everything."""
    rows = pq.read_table(parquet).to_pylist()
    return [
        Pair(r["key"], r["url"], r["caption"], r["jpg"])
        for r in rows
        if (r["caption"] or "").strip() and r["jpg"] and r["url"]
    ]


Form = Callable[[Sequence[Pair], Path], dict[str, Any]]
FORMS: dict[str, Form] = {}
WITHOUT_URL = {"plain tar", "tar without json", "folder of texts"}
"""Forms that have no place for one, nor for facts."""


def form(name: str) -> Callable[[Form], Form]:
    def known(write: Form) -> Form:
        FORMS[name] = write
        return write

    return known


def _table(pairs: Sequence[Pair], image: Any = None, **kinds: pa.DataType) -> pa.Table:
    columns = {
        "key": pa.array([p.key for p in pairs], kinds.get("key", pa.string())),
        "url": pa.array([p.url for p in pairs], kinds.get("url", pa.string())),
        "caption": pa.array([p.caption for p in pairs], kinds.get("caption", pa.string())),
        "jpg": image if image is not None else pa.array([p.image for p in pairs], kinds.get("jpg", pa.binary())),
    }
    return pa.table(columns | {name: pa.array([p.facts[name] for p in pairs], kind) for name, kind in FACTS.items()})


def _image_files(pairs: Sequence[Pair], folder: Path) -> list[str]:
    """Files named as datasets' tables name them: below a folder, by key."""
    names = []
    for pair in pairs:
        path = folder / "images" / pair.key[:2] / f"{pair.key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pair.image)
        names.append(path.relative_to(folder).as_posix())
    return names


@form("img2dataset's Parquet")
def img2dataset_parquet(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    pq.write_table(_table(pairs), folder / "00000.parquet", row_group_size=7)
    return {"path": str(folder)}


@form("Parquet with large types")
def large(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    kinds = {"key": pa.large_string(), "url": pa.large_string(), "caption": pa.large_string(), "jpg": pa.large_binary()}
    pq.write_table(_table(pairs, **kinds), folder / "a.parquet")
    return {"path": str(folder / "a.parquet")}


@form("Parquet with views and dictionaries")
def views(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    table = _table(pairs, key=pa.string_view(), jpg=pa.binary_view())
    pq.write_table(table.set_column(2, "caption", table["caption"].dictionary_encode()), folder / "a.pq")
    return {"path": str(folder)}


@form("Parquet with texts as bytes and captions in lists")
def bytes_and_lists(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    captions = pa.array([[" ", p.caption, "another"] for p in pairs], pa.list_(pa.string()))
    table = _table(pairs, url=pa.binary()).set_column(2, "caption", captions)
    pq.write_table(table, folder / "a.parquet")
    return {"path": str(folder)}


@form("Hugging Face's Parquet")
def hugging_face(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    images = pa.array([{"bytes": p.image, "path": f"{p.key}.jpg"} for p in pairs])
    table = _table(pairs, images).rename_columns({"jpg": "image", "caption": "text"}).drop_columns(["key"])
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return {"path": str(folder), "image_column": "image", "text_column": "text"}


@form("Hugging Face's Parquet with paths alone")
def hugging_face_paths(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    images = pa.array([{"bytes": None, "path": name} for name in _image_files(pairs, folder)], _HF)
    pq.write_table(_table(pairs, images), folder / "train.parquet", row_group_size=5)
    return {"path": str(folder / "*.parquet")}


_HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@form("Parquet with paths below a root")
def paths(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    names = _image_files(pairs, folder / "elsewhere")
    (folder / "tables").mkdir()
    pq.write_table(_table(pairs, pa.array(names)), folder / "tables" / "a.parquet")
    return {"path": str(folder / "tables"), "image_root": str(folder / "elsewhere")}


@form("a Delta table")
def delta(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    from deltalake import DeltaTable, write_deltalake

    write_deltalake(
        str(folder / "table"), _table([Pair("gone", "http://gone", "a row that was deleted", b"x"), *pairs])
    )
    DeltaTable(str(folder / "table")).delete("key = 'gone'")
    return {"path": str(folder / "table")}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@form("img2dataset's tars")
def img2dataset_tars(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for pair in pairs:
            facts = {"key": pair.key, "url": pair.url, "caption": pair.caption, "width": 9, **pair.facts}
            facts["similarity"] = float("nan") if facts["similarity"] is None else facts["similarity"]
            _add(tar, f"{pair.key}.jpg", pair.image)
            _add(tar, f"{pair.key}.txt", pair.caption.encode())
            _add(tar, f"{pair.key}.json", json.dumps(facts, indent=4).encode())
    # Beside each tar img2dataset keeps its facts, without images.
    facts_table = pa.table(
        {"url": [p.url for p in pairs], "caption": [p.caption for p in pairs], "status": ["success"] * len(pairs)}
    )
    pq.write_table(facts_table, folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"count": 1}')
    return {"path": str(folder)}


@form("plain tar")
def plain_tar(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    with tarfile.open(folder / "set-000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("./"))
        for n, pair in enumerate(pairs):
            stem = f"./a rather long folder/{'x' * 120}/{n:06}"
            _add(tar, f"{stem}.caption", pair.caption.encode())
            _add(tar, f"{stem}.JPEG" if n % 2 else f"{stem}.png", pair.image)
            _add(tar, f"{stem}.cls", b"7")
    return {"path": str(folder / "set-*.tar"), "url_column": None}


@form("tar without json")
def two_tars(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    for n, part in enumerate((pairs[::2], pairs[1::2])):
        with tarfile.open(folder / f"{n}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for pair in part:
                _add(tar, f"{pair.key}.webp", pair.image)
                _add(tar, f"{pair.key}.txt", pair.caption.encode())
                _add(tar, f"._{pair.key}.txt", b"what macOS leaves")
    return {"path": str(folder)}


@form("tar with json alone")
def tar_json(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for n, pair in enumerate(pairs):
            _add(tar, f"{n}.json", json.dumps({"alt": pair.caption, "source": pair.url, **pair.facts}).encode())
            _add(tar, f"{n}.jpg", pair.image)
    return {"path": str(folder), "text_column": "alt", "url_column": "source"}


@form("CSV")
def comma(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    names = _image_files(pairs, folder)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption", "url", "note", *FACTS])
        note = 'a "quoted"\nline'
        writer.writerows([name, p.caption, p.url, note, *_cells(p)] for name, p in zip(names, pairs, strict=True))
    return {"path": str(folder), "image_column": "file_name"}


@form("TSV, compressed")
def tabs(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    names = _image_files(pairs, folder)
    with gzip.open(folder / "pairs.tsv.gz", "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["caption", "url", "image", *FACTS])
        writer.writerows([p.caption, p.url, name, *_cells(p)] for name, p in zip(names, pairs, strict=True))
    return {"path": str(folder / "*.tsv.gz"), "image_column": "image"}


@form("JSON lines")
def json_lines(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    names = _image_files(pairs, folder)
    lines = [
        json.dumps(
            {
                "file_name": name,
                "text": [p.caption] if n % 2 else p.caption,
                "meta": {"url": p.url},
                "url": p.url,
                **{name: value for name, value in p.facts.items() if value is not None},
            }
        )
        for n, (name, p) in enumerate(zip(names, pairs, strict=True))
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    return {"path": str(folder), "image_column": "file_name", "text_column": "text"}


@form("folder of texts")
def folder_of_texts(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    for name, pair in zip(_image_files(pairs, folder), pairs, strict=True):
        (folder / name).with_suffix(".txt").write_text(pair.caption)
    return {"path": str(folder)}


@form("img2dataset's folders")
def img2dataset_folders(pairs: Sequence[Pair], folder: Path) -> dict[str, Any]:
    (folder / "00000").mkdir()
    for pair in pairs:
        (folder / "00000" / f"{pair.key}.jpg").write_bytes(pair.image)
        (folder / "00000" / f"{pair.key}.txt").write_text(pair.caption)
        facts = {"key": pair.key, "url": pair.url, "caption": pair.caption, **pair.facts}
        (folder / "00000" / f"{pair.key}.json").write_text(json.dumps(facts))
    facts_table = pa.table(
        {"url": [p.url for p in pairs], "caption": [p.caption for p in pairs], "status": ["success"] * len(pairs)}
    )
    pq.write_table(facts_table, folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"count": 1}')
    return {"path": str(folder)}
