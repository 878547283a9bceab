"""Exports of what the whole chain made: the manifest's schema, and texts of a hostile source."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands.export import FORMS
from tests.chain import run, settings
from tests.export.odd_dataset import facts, held, small_shards
from tests.inputs.forms import Pair, pairs_of
from tests.inputs.test_forms import with_knowledge  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow
SCHEMA = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def test_manifests_are_what_their_schema_says(whole: Path, tmp_path: Path) -> None:
    """Of a run, and of its exports. Catches: a page for programs that tells of another manifest."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    manifest = json.loads((whole / "i2e" / "manifest.json").read_text())
    check.validate(manifest)
    assert manifest.keys() <= schema["properties"].keys()
    for form in sorted(FORMS):
        for splits in (["train"], ["train", "validation", "test"]):
            made = small_shards(f"{whole}/i2e", tmp_path / form, form, splits=splits)
            told = json.loads((made / "manifest.json").read_text())
            check.validate(told)
            assert told.keys() <= schema["properties"].keys()
    for broken in ({"units": 3}, {"images": -1}, {"export": {"format": "zip"}}, {"dataset": "x"}):
        assert not check.is_valid(manifest | broken)
    for name in schema["then"]["required"]:
        assert not check.is_valid({key: value for key, value in manifest.items() if key != name})


BYTES = (b" \xff\xfe", b" f\xfcr", b" \xed\xa0\xbd", b" \xc0\x80", b" \x00\x01\x1b\x7f", b" \xf4\x90\x80\x80")
"""No UTF-8: Latin-1, half a surrogate pair, an overlong NUL, beyond Unicode; and control characters, which are."""


def as_parquet(pairs: list[Pair], folder: Path) -> None:
    def column(values: list[bytes]) -> pa.Array:
        # A view, since no cast makes such text.
        raw = pa.array(values, pa.binary())
        return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())

    ends = [BYTES[n % len(BYTES)] for n in range(len(pairs))]
    columns = {
        "key": column([p.key.encode() + end for p, end in zip(pairs, ends, strict=True)]),
        "url": column([p.url.encode() + end for p, end in zip(pairs, ends, strict=True)]),
        "caption": column([p.caption.encode() + end for p, end in zip(pairs, ends, strict=True)]),
        "note": column(ends),
        "jpg": pa.array([p.image for p in pairs]),
    }
    pq.write_table(pa.table(columns), folder / "a.parquet")


def as_tar(pairs: list[Pair], folder: Path) -> None:
    with tarfile.open(folder / "b.tar", "w", encoding="utf-8", errors="surrogateescape") as tar:
        for n, pair in enumerate(pairs):
            name = f"{pair.key}" + ("" if n % 2 else "\udcff")
            told = b'{"url": "%s\\ud83d", "key": "%s\\udfff", "note": "\\u0000\\ud800"}' % (
                pair.url.encode(), pair.key.encode(),
            )  # fmt: skip
            parts = {"jpg": pair.image, "txt": pair.caption.encode() + BYTES[n % len(BYTES)], "json": told}
            for suffix, content in parts.items():
                header = tarfile.TarInfo(f"{name}.{suffix}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def as_tables(pairs: list[Pair], folder: Path) -> None:
    lines, objects = [b"key,url,caption,note,jpg"], []
    for n, pair in enumerate(pairs):
        path = folder / "files" / f"{n}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pair.image)
        end = BYTES[n % len(BYTES)]
        cells = [pair.key.encode() + end, pair.url.encode() + end, pair.caption.encode() + end, b"x" + end]
        if n % 2:
            quoted = [b'"%s"' % cell.replace(b'"', b'""') for cell in cells]
            lines.append(b",".join([*quoted, f"files/{n}.jpg".encode()]))
        else:
            told = json.dumps({"key": pair.key, "url": pair.url, "caption": pair.caption, "jpg": f"files/{n}.jpg"})
            objects.append(told[:-1].encode() + b', "note": "\\ud83d\\u0000%s"}' % bytes(b for b in end if b > 127))
            objects[-1] = objects[-1].replace(b'", "jpg"', b'\\udc00", "jpg"')
    (folder / "c.csv").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "d.jsonl").write_bytes(b"\n".join(objects) + b"\n")


def strings(table: pa.Table) -> Iterator[tuple[str, bytes]]:
    """Every text of a table, its nested columns' too, as bytes."""
    for name in table.column_names:
        for chunk in table.column(name).chunks:
            yield from ((name, value) for value in _texts(chunk))


def _texts(column: pa.Array) -> Iterator[bytes]:
    if pa.types.is_string(column.type):
        yield from (value for value in column.cast(pa.binary()).to_pylist() if value is not None)
    elif pa.types.is_struct(column.type):
        for n in range(column.type.num_fields):
            yield from _texts(column.field(n))
    elif pa.types.is_list(column.type):
        yield from _texts(column.flatten())


def test_text_that_is_no_utf8_reaches_neither_the_dataset_nor_an_export(
    world: Path,
    with_knowledge: Path,  # noqa: F811
    tmp_path: Path,
    spark: Any,
) -> None:
    """From every kind of source at once, in captions, addresses, keys and kept columns."""
    pairs = [pair for shard in sorted((world / "pairs").glob("*.parquet")) for pair in pairs_of(shard)]
    source = tmp_path / "in"
    source.mkdir()
    third = len(pairs) // 3
    as_parquet(pairs[:third], source)
    as_tar(pairs[third : 2 * third], source)
    as_tables(pairs[2 * third :], source)
    paths = ", ".join(f"{source}/{name}" for name in ("a.parquet", "b.tar", "c.csv", "d.jsonl"))
    config = settings(world, with_knowledge, f"pairs.path=[{paths}]", "pairs.keep_columns=[note]")
    run(config, spark)
    dataset = with_knowledge / "i2e"
    seen, shown = set(), set()
    for file in sorted(with_knowledge.rglob("*.parquet")):
        if file.is_relative_to(dataset) or "/pairs/" in str(file) or "/texts/" in str(file):
            for column, value in strings(pq.read_table(file, partitioning=None)):
                text = value.decode()  # fails for what is no UTF-8
                seen.add(column)
                shown |= {column} if "\ufffd" in text else set()
    assert {"alt_text", "url", "key", "note", "name", "labels"} <= seen
    assert {"alt_text", "url", "key", "note"} <= shown
    rows = pq.read_table(dataset / "images").to_pylist()
    assert len(rows) > 20
    assert any("\0" in row["alt_text"] for row in rows)
    for form in sorted(FORMS):
        made = small_shards(str(dataset), tmp_path / form, form)
        wanted = facts(dataset)
        if form == "open_clip-csv":
            wanted = {i: (sha, text.replace("\0", "\ufffd"), told) for i, (sha, text, told) in wanted.items()}
        assert held(made, form) == wanted
        for path in (p for p in made.rglob("*") if p.suffix in (".tsv", ".json", ".md")):
            path.read_bytes().decode()
