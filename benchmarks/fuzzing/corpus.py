"""Small whole files of each kind, which are then damaged; made here, and no file is kept in the repository."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, features

from i2e_pipeline.core import digests

ENTITIES = 24


@lru_cache(maxsize=1)
def dump_lines() -> tuple[bytes, ...]:
    """Lines of a Wikidata dump with all that is read of them."""
    made = []
    for n in range(1, ENTITIES):
        item = {
            "type": "item",
            "id": f"Q{n}",
            "lastrevid": n,
            "labels": {
                "en": {"language": "en", "value": f"Thing {n} of İstanbul"},
                "mul": {"language": "mul", "value": f"T{n}"},
            },
            "descriptions": {"en": {"language": "en", "value": "first planet"}},
            "aliases": {"en": [{"language": "en", "value": f"alias {n}"}, {"language": "en", "value": "東京"}]},
            "claims": {
                "P31": [_statement({"entity-type": "item", "numeric-id": 5, "id": "Q5"}, "preferred")],
                "P279": [_statement({"entity-type": "item", "numeric-id": n + 1, "id": f"Q{n + 1}"})],
                "P18": [_statement("a.jpg")],
                "P1448": [_statement({"text": "Official", "language": "en"})],
                "P225": [_statement("Panthera leo")],
                "P297": [_statement("DE")],
                "P569": [{"mainsnak": {"snaktype": "novalue"}}],
            },
            "sitelinks": {"enwiki": {"site": "enwiki", "title": f"Thing {n} (planet)", "badges": []}},
        }
        made.append(json.dumps(item, ensure_ascii=n % 2 == 0).encode() + b",")
    made.append(b'{"entity":"Q100","redirect":"Q1"},')
    made.append(json.dumps({"type": "property", "id": "P31", "labels": {}}).encode() + b",")
    return tuple(made)


def _statement(value: Any, rank: str = "normal") -> dict[str, Any]:
    return {"mainsnak": {"snaktype": "value", "property": "P0", "datavalue": {"value": value}}, "rank": rank}


def dump() -> bytes:
    return b"[\n" + b"\n".join(dump_lines()).rstrip(b",") + b"\n]\n"


COMPRESSIONS: dict[str, Any] = {
    "": lambda data: data,
    ".bz2": bz2.compress,
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pa.Codec("zstd").compress(data, asbytes=True)),
}


@lru_cache(maxsize=1)
def tables() -> dict[str, bytes]:
    """Popularity, anchors, importance, redirects."""
    numbers = range(1, 200)
    return {
        "popularity": b"qid,number\n" + b"".join(b"Q%d,%d.5\n" % (n, n) for n in numbers),
        "anchors": b"".join(b"surface %d\tQ%d\t%d\n" % (n, n, n) for n in numbers),
        "anchors with unlinked": b"surface\tqid\tcount\tunlinked\n"
        + b"".join(b"s \xc3\xa9\tQ%d\t1\t\n" % n for n in numbers),
        "importance": b"language\ttype\ttitle\timportance\twikidata_id\n"
        + b"".join(b"en\ta\tTitle_%d\t0.%d\tQ%d\n" % (n, n, n) for n in numbers),
        "redirects": b"from\tinto\n" + b"".join(b"Q%d\tQ%d\n" % (n + 1000, n) for n in numbers),
    }


def wiki_page(text: str) -> bytes:
    return (
        f"<page><title>A title</title><ns>0</ns><id>1</id><revision><id>1</id><model>wikitext</model>"
        f"<text>{text}</text></revision>"
    ).encode("utf-8", "replace")


WIKITEXT = (
    "'''A''' is a [[town|small town]] in [[Germany]]s. {{Infobox|a={{b}}|c}} &lt;ref&gt;{{cite}}&lt;/ref&gt; "
    "[[File:A.jpg|thumb|A [[cat]] here]]\n{| class=x\n|-\n| a || b\n|}\n* one\n# two\n== Heading ==\n"
    "&lt;nowiki&gt;[[x]]&lt;/nowiki&gt; [http://a b] &lt;gallery&gt;a.jpg|cap&lt;/gallery&gt; &lt;!-- c --&gt; "
    "[[:Category:A]] [[de:B]] {{!}} ''x''"
)
SQL = (
    b"INSERT INTO `page` VALUES (1,0,'A_title','',0),(2,0,'It\\'s','',0);\n"
    b"INSERT INTO `redirect` VALUES (1,0,'B','','');\n"
)


def picture(seed: int, sides: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(sides, Image.Resampling.BICUBIC)


@lru_cache(maxsize=1)
def images() -> dict[str, list[bytes]]:
    """Images of every format that is read here, in more than one of its forms."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    rgb, grey, palette = picture(1), picture(2).convert("L"), picture(3).convert("P")
    rgba = picture(4).convert("RGBA")
    rgba.putalpha(grey)
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))
    made: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "JPEG": [
            (rgb, {"exif": exif}),
            (rgb, {"progressive": True}),
            (grey, {}),
            (rgb.convert("CMYK"), {}),
            (rgb, {"comment": b"c"}),
        ],
        "PNG": [(rgb, {"exif": exif}), (rgba, {}), (palette, {"transparency": 0}), (deep, {}), (rgb.convert("1"), {})],
        "GIF": [
            (palette, {}),
            (palette, {"save_all": True, "append_images": [palette.rotate(9)]}),
            (palette, {"interlace": 1}),
        ],
        "WEBP": [
            (rgb, {"exif": exif}),
            (rgba, {"lossless": True}),
            (rgb, {"save_all": True, "append_images": [rgb.rotate(9)]}),
        ],
        "BMP": [(rgb, {}), (palette, {}), (grey, {})],
        "TIFF": [
            (rgb, {}),
            (rgb, {"compression": "tiff_lzw"}),
            (rgb, {"compression": "tiff_deflate"}),
            (deep, {}),
            (rgb.convert("1"), {"compression": "group4"}),
            (rgb, {"compression": "jpeg"}),
            (rgb, {"compression": "packbits"}),
        ],
        "ICO": [(rgba, {}), (rgba, {"bitmap_format": "bmp"})],
        "PPM": [(rgb, {}), (grey, {}), (rgb.convert("1"), {})],
        "JPEG2000": [(rgb, {}), (grey, {"no_jp2": True})],
        "AVIF": [(rgb, {}), (rgba, {})],
        "QOI": [],
        "PSD": [],
    }
    found: dict[str, list[bytes]] = {}
    for kind, forms in made.items():
        Image.init()
        if kind not in Image.SAVE or (kind == "AVIF" and not features.check("avif")):
            continue
        found[kind] = [_saved(image, kind, how) for image, how in forms]
    found["PPM"] += [b"P3 2 2 255\n" + b"9 8 7 " * 4, b"P2 3 2 9\n1 2 3\n4 5 6\n", b"P1 2 2\n1 0 0 1\n"]
    found["QOI"] = [b"qoif" + (4).to_bytes(4, "big") * 2 + b"\3\0" + b"\xfe\1\2\3" + b"\xc3" * 4 + bytes(7) + b"\1"]
    found["PSD"] = [_psd()]
    found |= _by_plugins(rgb)
    return {kind: stored for kind, stored in found.items() if stored}


def _saved(image: Image.Image, kind: str, how: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def _psd() -> bytes:
    head = b"8BPS\0\1" + bytes(6) + b"\0\3" + (4).to_bytes(4, "big") * 2 + b"\0\x08\0\3"
    return head + bytes(12) + b"\0\0" + bytes(3 * 16)


def _by_plugins(image: Image.Image) -> dict[str, list[bytes]]:
    found = {}
    try:
        import pillow_heif

        stream = io.BytesIO()
        pillow_heif.from_pillow(image).save(stream, quality=50)
        found["HEIC"] = [stream.getvalue()]
    except ImportError:
        pass
    try:
        import pillow_jxl  # noqa: F401

        found["JPEG XL"] = [_saved(image, "JXL", {})]
    except (ImportError, KeyError):
        pass
    return found


ROWS = 7


@lru_cache(maxsize=1)
def parquet() -> list[bytes]:
    """Parquet files as people have them."""
    jpegs = [images()["JPEG"][n % 4] for n in range(ROWS)]
    captions = [f"a caption {n} of İstanbul" for n in range(ROWS)]
    plain = {"key": [str(n) for n in range(ROWS)], "url": [f"https://example.org/{n}" for n in range(ROWS)]}
    table = pa.table({**plain, "caption": captions, "jpg": jpegs})
    struct = pa.array([{"bytes": b, "path": "a.jpg"} for b in jpegs])
    forms: list[tuple[pa.Table, dict[str, Any]]] = [
        (table, {}),
        (table, {"compression": "zstd", "row_group_size": 3, "write_page_index": True}),
        (table, {"compression": "gzip", "use_dictionary": False, "data_page_version": "2.0"}),
        (table, {"compression": "none", "use_dictionary": ["caption"]}),
        (
            table,
            {
                "use_dictionary": False,
                "column_encoding": {"caption": "DELTA_BYTE_ARRAY", "url": "DELTA_LENGTH_BYTE_ARRAY"},
            },
        ),
        (pa.table({**plain, "caption": pa.array(captions).dictionary_encode(), "jpg": struct}), {}),
        (
            pa.table(
                {**plain, "caption": pa.array([[c, "b"] for c in captions]), "jpg": pa.array(jpegs, pa.large_binary())}
            ),
            {},
        ),
        (
            pa.table({**plain, "caption": pa.array(captions, pa.string_view()), "jpg": pa.nulls(ROWS)}),
            {"row_group_size": 2},
        ),
    ]
    made = []
    for one, how in forms:
        stream = io.BytesIO()
        pq.write_table(one, stream, **how)
        made.append(stream.getvalue())
    return made


def tar(rng: random.Random, format_: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of samples, with long names, links, folders and other odd members among them."""
    stream = io.BytesIO()
    stored = images()["JPEG"]
    with tarfile.open(fileobj=stream, mode="w", format=format_) as archive:
        for n in range(rng.randint(1, 6)):
            stem = rng.choice([f"{n:05}", f"folder/{n}", f"{'x' * 80}/{n}", f"é {n}", f"St. {n}"])
            for suffix, content in (
                (".jpg", stored[n % 4]),
                (".txt", b"a caption"),
                (".json", b'{"caption": "a", "n": [1]}'),
            ):
                if rng.random() < 0.85:
                    _add(archive, stem + suffix, content)
            if rng.random() < 0.3:
                header = tarfile.TarInfo(f"{stem}.png")
                header.type = rng.choice(
                    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
                )
                header.linkname = rng.choice([f"{stem}.jpg", "../x", "/etc/passwd"])
                archive.addfile(header)
    return stream.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    archive.addfile(header, io.BytesIO(content))


@lru_cache(maxsize=1)
def texts() -> dict[str, bytes]:
    """Tables of texts and paths, by the name of their file."""
    rows = "".join(f'{n}.jpg,"a ""quoted"" caption {n}",https://example.org/{n}\n' for n in range(ROWS))
    lines = "".join(
        json.dumps({"jpg": f"{n}.jpg", "caption": f"caption {n}", "url": None, "more": {"a": [n]}}) + "\n"
        for n in range(ROWS)
    )
    return {
        "a.csv": ("jpg,caption,url\n" + rows).encode(),
        "a.tsv": ("jpg\tcaption\turl\n" + rows.replace(",", "\t")).encode(),
        "a.jsonl": lines.encode(),
        "a.jsonl.gz": gzip.compress(lines.encode(), mtime=0),
        "a.csv.gz": gzip.compress(("jpg,caption,url\n" + rows).encode(), mtime=0),
    }


CONFIG = """# a run
output: out/run
pairs:
  path: [a/*.parquet, b]
  text_column: caption
  where: "width > 10 and caption != ''"
  keep_columns: {similarity: double}
knowledge_base: &kb
  dump: latest-all.json.bz2
  languages: [en, no]
score: {model: 'local-dir:x', batch_size: 64, max_pixels: 50000000, dtype: bfloat16}
session:
  conf:
    spark.executor.memory: 4g
label:
  threshold: 0.9
fetch: {contact: me@example.org, timeout: 1e1}
"""

MARKS = b"".join(
    json.dumps(
        {"image_id": f"{n:032x}", "entity_id": n + 1, "mark": mark, "at": "2026-05-01T12:00:00Z", "weight": 1.5}
    ).encode()
    + b"\n"
    for n, mark in enumerate(("right", "wrong", "unsure", "cleared", "right"))
)


def journal() -> bytes:
    written = {"path": "unit=u-1/part-0.parquet", "rows": 1, "bytes": 10}
    record = {
        "stage": "pairs",
        "unit": "u-1",
        "fingerprint": "f",
        "components": None,
        "files": {"pairs": [written]},
        "rows_in": 2,
        "rows_out": 1,
        "rejected": {"null_text": 1},
        "seconds": 1.0,
        "facts": {},
        "task_seconds": 0.0,
        "edition": "",
    }
    return json.dumps({"anew": False, "gone": ["u-0"], "components": {"f": {"a": 1}}, "commits": [record]}).encode()


def unit() -> bytes:
    file = {
        "shard": 0,
        "path": "a.parquet",
        "size": 1,
        "modified": 1,
        "digest": "0" * 32,
        "rows": 1,
        "kinds": {"a": "int"},
    }
    return json.dumps({"name": "u-000000000001", "files": [file], "share": [0.0, 1.0], "replaces": None}).encode()


LOCK = b'{"host": "elsewhere", "process": 7, "since": "2026-01-01", "beat": 1e9, "began": "", "namespace": "pid:[1]"}'


def output(folder: Path) -> list[Path]:
    """A small output of one stage that the config does not name: a unit with a file of rows, and one of rejects, and a
    change of files that was cut off. Returns its records."""
    of_unit = json.loads(unit())
    table = pa.table({"a": list(range(9))})
    made: dict[str, list[dict[str, Any]]] = {}
    for name in ("pairs", "rejects"):
        path = (
            folder / name / ("stage=pairs" if name == "rejects" else "") / f"unit={of_unit['name']}" / "part-0.parquet"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        below = path.relative_to(folder / name).as_posix()
        made[name] = [{"path": below, "rows": 9, "bytes": path.stat().st_size, "digest": digests.of_file(str(path))}]
    said = json.loads(journal())
    commit = {**said["commits"][0], "unit": of_unit["name"], "files": made, "rows_in": 18, "rows_out": 9}
    commit["rejected"] = {"null_text": 9}
    intent = {"staging": "_staging/merging-1", "stages": {"pairs": [{**commit, "components": {}}]}}
    records = {
        "_commits/pairs/journal-000000001.json": {**said, "commits": [commit]},
        "_commits/merging.json": intent,
        f"units/{of_unit['name']}.json": of_unit,
        "_storage.json": {"format": "parquet"},
    }
    for below, record in records.items():
        (folder / below).parent.mkdir(parents=True, exist_ok=True)
        (folder / below).write_text(json.dumps(record))
    return [folder / below for below in records]


def real(*parts: str) -> Iterator[Path]:
    """Files of the folder that I2E_REAL_DATA names, where it is set: those below these parts."""
    folder = os.environ.get("I2E_REAL_DATA")
    if folder:
        for part in parts:
            yield from (path for path in sorted(Path(folder, part).rglob("*")) if path.is_file())
