"""The doors through which bytes and texts of strangers come in, and what must hold of each.

A target sets itself up in a folder and gives a function that makes one input, tries it, and says what became of it. An
error that is not said to users (I2EError, or SourceError of `wikidata`), or that does not name the file, is a failure;
so are rows that are neither read nor rejected.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from fuzzing import corpus
from fuzzing.mutate import mutated, odd, text

from i2e_pipeline.core import config, files, settings
from i2e_pipeline.core.config import ImageLimits, PairsConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.stored_image import NoImage
from i2e_pipeline.images.decode import Decoded, Rejected, decode
from i2e_pipeline.inputs import formats, listing, look, marks
from wikidata import anchors, items, source_files, sources, wiki_sql
from wikidata.source_files import SourceError

Once = Callable[[random.Random], str]
TARGETS: dict[str, Callable[[Path], Once]] = {}
READ, REFUSED = "read", "refused"


class RowsLost(AssertionError):
    """Rows in are not rows out and rejects."""


class Unnamed(AssertionError):
    """An error that does not name the file that it is about."""


def target(name: str) -> Callable[[Callable[[Path], Once]], Callable[[Path], Once]]:
    def known(setup: Callable[[Path], Once]) -> Callable[[Path], Once]:
        TARGETS[name] = setup
        return setup

    return known


def _same(rows_in: Any, rows_out: Any, what: str) -> None:
    if rows_in != rows_out:
        raise RowsLost(f"{what}: {rows_in} in, {rows_out} out")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error that is said to users must say which file it is about."""
    try:
        yield
    except (I2EError, SourceError) as error:
        if path.name not in str(error):
            raise Unnamed(f"{type(error).__name__}: {error}") from error
        raise


# --- Wikidata and Wikipedia -----------------------------------------------------------------------------------------


@target("dump lines")
def dump_lines(folder: Path) -> Once:
    known = corpus.dump_lines()

    def once(rng: random.Random) -> str:
        lines = [mutated(rng.choice(known), rng, known) for _ in range(rng.randint(1, 6))]
        batch = pa.record_batch([pa.array(lines, pa.binary())], ["value"])
        made = [(name, rows) for name, rows in items.read_items([batch])]
        counts = dict.fromkeys(("entities", "rejects"), 0)
        for name, rows in made:
            rows.validate(full=True)
            counts[name] = counts.get(name, 0) + rows.num_rows
        _same(len(lines), counts["entities"] + counts["rejects"], "lines")
        for line in lines:
            items.verdict(line), items.merged(line), items.statements(line)
        list(anchors.read_titles([batch], ["enwiki"]))
        return READ if counts["entities"] else REFUSED

    return once


def _lines_of(path: Path, partial: bool) -> list[bytes]:
    (source,) = source_files.recognised([str(path)], source_files.DUMP)
    source_files.unclosed([source])
    number = [pa.record_batch([pa.array([0])], ["n"])]
    read = source_files.lines(number, [source], partial)
    return [line for batch in read for line in batch.column(0).to_pylist()]


@target("dump files")
def dump_files(folder: Path) -> Once:
    plain = corpus.dump()
    packed = {suffix: pack(plain) for suffix, pack in corpus.COMPRESSIONS.items()}

    def once(rng: random.Random) -> str:
        suffix = rng.choice(list(packed))
        inside = rng.random() < 0.4
        content = corpus.COMPRESSIONS[suffix](mutated(plain, rng)) if inside else mutated(packed[suffix], rng, [plain])
        if suffix and rng.random() < 0.2:
            content += packed[suffix]  # another stream
        path = folder / f"dump.json{suffix}"
        path.write_bytes(content)
        with _naming(path):
            try:
                lines = _lines_of(path, rng.random() < 0.3)
            except SourceError as error:
                with _refused_too(path):
                    _lines_of(path, True)
                raise error
        if not suffix:
            _same(content.removesuffix(b"\n").split(b"\n"), lines, "lines of a plain file")
            _same_in_pieces(path, content, rng)
        return READ

    return once


@contextmanager
def _refused_too(path: Path) -> Iterator[None]:
    try:
        with _naming(path):
            yield
    except SourceError:
        pass


def _same_in_pieces(path: Path, content: bytes, rng: random.Random) -> None:
    (source,) = source_files.recognised([str(path)], source_files.DUMP)
    cut = source_files.pieces([source], rng.choice([1, 7, 100, 5000]) + rng.randrange(50))
    numbers = [pa.record_batch([pa.array(range(len(cut)))], ["n"])]
    read = source_files.lines_of_pieces(numbers, cut, size=rng.choice([16, 512, 1 << 20]))
    lines = [line for batch in read for line in batch.column(0).to_pylist()]
    whole = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
    _same(whole, lines, "lines of pieces")


@target("popularity, anchors, importance, redirects")
def source_tables(folder: Path) -> Once:
    forms = {**sources._FORMS, "anchors with unlinked": sources._ANCHORS, "redirects": sources._REDIRECTS}
    makes = {
        "popularity": sources._popularity,
        "anchors": sources._anchors,
        "anchors with unlinked": sources._anchors,
        "importance": sources._importance,
        "redirects": sources._redirects,
    }

    def once(rng: random.Random) -> str:
        kind = rng.choice(list(forms))
        suffix = rng.choice(list(corpus.COMPRESSIONS))
        path = folder / f"a.tsv{suffix}"
        content = mutated(corpus.tables()[kind], rng, list(corpus.tables().values()), 3)
        path.write_bytes(corpus.COMPRESSIONS[suffix](content))
        with _naming(path):
            (source,) = source_files.recognised([str(path)], forms[kind].said)
            survey, rows = sources._Survey(), 0
            for columns in sources.parsed(source, forms[kind], survey, rng.choice([64, 4096, 1 << 18])):
                arrays = makes[kind](columns)
                rows += len(next(iter(columns.values())))
                _same(1, len({len(array) for array in arrays}), "columns of one length")
            _same(survey.rows, rows, "rows")
            sources.first_ids([str(path)], "anchors" if "anchors" in kind else "popularity")
        return READ

    return once


@target("Wikipedia's pages and tables")
def wikipedia(folder: Path) -> Once:
    site = anchors.site_of("<dbname>enwiki</dbname>", "a")
    assert site is not None
    known = [corpus.wiki_page(corpus.WIKITEXT), corpus.wiki_page("#REDIRECT [[B]]")]

    def once(rng: random.Random) -> str:
        if rng.random() < 0.5:
            records = [mutated(rng.choice(known), rng, known) for _ in range(3)]
        else:
            pieces = [*"[]{}|<>='\n&;#*:", "[[", "]]", "{{", "}}", "{|", "|}", "<nowiki>", "<ref>", "''", text(rng, 9)]
            marks = "".join(rng.choices(pieces, k=rng.randrange(200)))
            records = [corpus.wiki_page(marks.replace("&", "&amp;").replace("<", "&lt;"))]
        batch = pa.record_batch([pa.array(records, pa.binary())], ["value"])
        rows = list(anchors.read_pages([batch], site))
        if sum(b.num_rows for b in rows) < len(records):
            raise RowsLost("a record without a row")
        for line in mutated(corpus.SQL, rng).split(b"\n"):
            list(wiki_sql.rows(line))
        return READ if any(r is None for b in rows for r in b.column("reason").to_pylist()) else REFUSED

    return once


# --- texts ----------------------------------------------------------------------------------------------------------


@target("alt-texts")
def alt_texts(folder: Path) -> Once:
    from i2e_pipeline.extract.gazetteer import Gazetteer, build
    from i2e_pipeline.extract.mentions import find_mentions
    from i2e_pipeline.extract.recognizer import load
    from i2e_pipeline.extract.text import clean, clean_with_offsets, read_texts
    from wikidata.schemas import SURFACES
    from wikidata.surface import normal_form

    names = [
        "Granny Smith",
        "New York",
        "İstanbul",
        "東京",
        "서울",
        "L'Oréal",
        "ガーナ",
        "Straße",
        "(500) Days of Summer",
        "กรุงเทพ",
    ]
    rows = [
        {
            "normal_form": normal_form(n),
            "candidates": [{"entity_id": 1, "prior": 1.0, "kind": "label"}],
            "link_probability": 0.5,
            "forms": [n],
            "gazetteer": True,
        }
        for n in names
    ]
    build([pa.RecordBatch.from_pylist(rows, schema=SURFACES)], folder / "g")
    gazetteer, recognizer = Gazetteer(folder / "g"), load("blank")
    pieces = [
        *names,
        "&amp;amp;",
        "<b>",
        "</b>",
        "<!--",
        "IMG_2034.jpg",
        "Ã©",
        "â€™",
        '""',
        "%20",
        "\u200b",
        "\ud800",
        "&#x",
        "_",
    ]

    def once(rng: random.Random) -> str:
        said: list[str | bytes | None] = []
        for _ in range(rng.randint(1, 8)):
            one = "".join(rng.choice([rng.choice(pieces), text(rng), " "]) for _ in range(rng.randrange(12)))
            said.append(rng.choice([one, one, one, one * 200, None]))
        most = rng.choice([1, 7, 1000])
        cleaned = [clean(one, most) for one in said if isinstance(one, str)]
        for one, whole in zip((s for s in said if isinstance(s, str)), cleaned, strict=True):
            again, spans = clean_with_offsets(one, most)
            _same(whole, again, "cleaned texts")
            _same(len(whole), len(spans), "spans")
            if len(whole) > most:
                raise AssertionError(f"{len(whole)} characters and not {most}: {one!r}")
        batch = _pairs_batch([s if s is None else s.encode("utf-8", "replace").decode() for s in map(_text, said)])
        counts: dict[str, int] = {}
        found: list[pa.RecordBatch] = []
        for name, made in read_texts([batch]):
            counts[name] = counts.get(name, 0) + made.num_rows
            found += [made] if name == "texts" else []
        _same(len(said), counts.get("pairs", 0) + counts.get("rejects", 0), "texts")
        for made in found:
            for name, out in find_mentions([made.select(["text_id", "text"])], recognizer, gazetteer):
                if name == "mentions":
                    by_id = dict(zip(made["text_id"].to_pylist(), made["text"].to_pylist(), strict=True))
                    for row in out.to_pylist():
                        _same(by_id[row["text_id"]][row["start"] : row["end"]], row["surface"], "surface")
        return READ if counts.get("pairs") else REFUSED

    return once


def _text(said: Any) -> str | None:
    return said if said is None or isinstance(said, str) else str(said)


def _pairs_batch(captions: list[str | None]) -> pa.RecordBatch:
    from i2e_pipeline.core.schemas import ID

    count = len(captions)
    ids = [n.to_bytes(16, "big") for n in range(count)]
    nothing = pa.nulls(count, pa.string())
    return pa.RecordBatch.from_pydict(
        {
            "shard": pa.array([0] * count, pa.int32()),
            "row": pa.array(range(count), pa.int64()),
            "pair_id": pa.array(ids, ID),
            "key": nothing,
            "url": nothing,
            "caption": pa.array(captions, pa.string()),
            "group": nothing,
        }
    )


# --- pairs ----------------------------------------------------------------------------------------------------------


def _prepare(image: Any) -> np.ndarray:
    return np.asarray(image.resize((8, 8)))


_LIMITS = ImageLimits(max_pixels=4_000_000, min_side=1, max_aspect=1e9)


def _decoded(stored: Any) -> None:
    made = decode(stored, _LIMITS, _prepare, 8)
    if not isinstance(made, Decoded | Rejected):
        raise AssertionError(f"decode gave {type(made)}")


def read_pairs(path: Path, folder: Path, pairs: PairsConfig) -> str:
    """As a plan looks at it and a run reads it: every row's texts and image."""
    named = path.parent if path.name.isdecimal() else path
    with _naming(named):
        found = listing.listed(pairs)
        for number, source in enumerate(found):
            seen = look.look(source, pairs, images=True)
            if not seen.rows:  # it is counted as read, and belongs to no unit
                continue
            index = None
            if seen.index is not None:
                index = str(folder / f"index-{number}.parquet")
                if isinstance(seen.index, pa.Table):
                    files.write_table(index, seen.index)
                else:
                    files.write_batches(index, seen.index())
            shard = source.shard(pairs, index)
            columns = [c for c in (pairs.key_column, pairs.url_column, pairs.text_column) if c]
            rows, start = 0, 0
            for start, batch in formats.columns(shard, columns):
                _same(rows, start, "first row of a batch")
                formats.texts(shard, batch)[0].validate(full=True)
                rows += batch.num_rows
            _same(seen.rows, rows, "rows of the texts")
            some = sorted({0, rows // 2, rows - 1} & set(range(rows)))
            _same(len(some), sum(b.num_rows for b in formats.rows(shard, some, columns)), "chosen rows")
            if rows and pairs.image_column in seen.schema.names:
                with formats.images(shard) as images:
                    read = list(images.read(range(rows)))
                _same(rows, len(read), "images")
                for stored in read:
                    if not (stored is None or isinstance(stored, bytes | NoImage)):
                        raise AssertionError(f"an image is {type(stored)}")
                    _decoded(stored)
    return READ


def _real(suffix: str, *parts: str) -> list[bytes]:
    return [p.read_bytes() for p in corpus.real(*parts) if p.name.endswith(suffix) and p.stat().st_size < 2_000_000]


@target("Parquet")
def parquet(folder: Path) -> Once:
    known = [*corpus.parquet(), *_real(".parquet", "faults/pairs", "pairs")[:40]]

    def once(rng: random.Random) -> str:
        path = folder / "00000.parquet"
        path.write_bytes(mutated(rng.choice(known), rng, known, 4))
        return read_pairs(path, folder, PairsConfig(path=(str(path),)))

    return once


@target("tars")
def tars(folder: Path) -> Once:
    real = _real(".tar", "faults/pairs", "pairs")[:10]

    def once(rng: random.Random) -> str:
        path = folder / "00000.tar"
        made = corpus.tar(rng, rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
        stored = rng.choice(real) if real and rng.random() < 0.1 else made
        path.write_bytes(_checked(mutated(stored, rng, [made], 4), rng))
        return read_pairs(path, folder, PairsConfig(path=(str(path),)))

    return once


def _checked(stored: bytes, rng: random.Random) -> bytes:
    """With the sums of its headers put right, mostly: a wrong one ends the reading at once."""
    if rng.random() < 0.3:
        return stored
    data = bytearray(stored)
    if len(data) >= 512 and rng.random() < 0.5:  # what a header may say of a member
        field, size = rng.choice([(124, 12), (156, 1), (0, 100), (157, 100), (257, 8), (345, 155), (482, 1)])
        at = 512 * rng.randrange(len(data) // 512)
        data[at + field : at + field + size] = rng.choice(
            [
                b"7" * size,
                b"\xff" * size,
                b"\x80" + bytes(size - 1),
                rng.randbytes(size),
                rng.choice(b"LKxgSDVMN012345").to_bytes(1, "big"),
            ]
        )[:size].ljust(min(size, 1), b"\0")
        data = bytearray(data[: len(data) // 512 * 512])
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


@target("CSV, TSV, JSON lines")
def text_tables(folder: Path) -> Once:
    known = corpus.texts()
    for n in range(corpus.ROWS):
        (folder / f"{n}.jpg").write_bytes(corpus.images()["JPEG"][n % 4])

    def once(rng: random.Random) -> str:
        name = rng.choice(list(known))
        content = mutated(known[name], rng, list(known.values()))
        path = folder / name
        path.write_bytes(content)
        try:
            return read_pairs(path, folder, PairsConfig(path=(str(path),)))
        finally:
            path.unlink()

    return once


@target("folders of img2dataset")
def img2dataset(folder: Path) -> Once:
    def once(rng: random.Random) -> str:
        place = folder / f"{rng.randrange(10**9):09}"
        (place / "_tmp").mkdir(parents=True)
        made: dict[str, bytes] = {
            "00000.parquet": corpus.parquet()[0],
            "00000_stats.json": b'{"count": 7, "status_dict": {"success": 7}}',
            "00001.tar": corpus.tar(rng),
            "00001_stats.json": b'{"count": 1}',
            "_tmp/1.feather": b"x",
            "00002/000000001.jpg": corpus.images()["JPEG"][0],
            "00002/000000001.txt": b"a caption",
            "00002/000000001.json": b'{"caption": "a", "url": "b", "width": 3}',
            "_fetch/record.json": b'{"of": "x", "counts": {"to fetch": 9}, "shards": 2}',
        }
        for name, content in made.items():
            if rng.random() < 0.6:
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_bytes(mutated(content, rng) if rng.random() < 0.4 else content)
        pairs = PairsConfig(path=(str(place),), allow_partial=rng.random() < 0.5)
        try:
            return read_pairs(place / "0", folder, pairs)
        finally:
            _remove(place)

    return once


def _remove(place: Path) -> None:
    import shutil

    shutil.rmtree(place)


# --- images ---------------------------------------------------------------------------------------------------------


def _image_target(kind: str) -> None:
    @target(f"images: {kind}")
    def of_kind(folder: Path) -> Once:
        known = corpus.images()[kind]
        others = [stored for forms in corpus.images().values() for stored in forms]

        def once(rng: random.Random) -> str:
            stored = mutated(rng.choice(known), rng, others if rng.random() < 0.2 else known)
            if kind == "PNG" and rng.random() < 0.6:
                stored = _right_sums(stored)
            made = decode(stored, _LIMITS, _prepare, rng.choice([0, 8]))
            if isinstance(made, Rejected):
                if len(str(made.detail)) > 300:
                    raise AssertionError(f"a detail of {len(str(made.detail))} characters")
                return REFUSED
            if made.width * made.height > _LIMITS.max_pixels or made.pixels.shape != (8, 8, 3):
                raise AssertionError(f"{made.width} x {made.height} was decoded")
            return READ

        return once


def _right_sums(stored: bytes) -> bytes:
    """A PNG whose chunks have the sums that they should."""
    import zlib

    data, at = bytearray(stored), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)


for _kind in corpus.images():
    _image_target(_kind)


# --- settings, marks, records ---------------------------------------------------------------------------------------


@target("configs")
def configs(folder: Path) -> Once:
    path = folder / "run.yaml"
    stored = corpus.CONFIG.encode()
    keys = [
        "pairs.path",
        "score.batch_size",
        "output",
        "session.conf.a.b",
        "label.threshold",
        "run",
        "x.y",
        "pairs.keep_columns",
    ]
    tokens = [
        *"[]{},:#&*!|>'\"%@`-? \n",
        "null",
        "~",
        "yes",
        "0x_",
        "1e9",
        "0o17",
        "1:30",
        "2026-05-01",
        "<<",
        "!!set",
        "!!binary",
        "9" * 5000,
    ]

    def once(rng: random.Random) -> str:
        path.write_bytes(mutated(stored, rng) if rng.random() < 0.7 else _yaml(rng).encode("utf-8", "surrogatepass"))
        written = "".join(rng.choice([rng.choice(tokens), text(rng, 5)]) for _ in range(rng.randrange(9)))
        overrides = [f"{rng.choice(keys)}={written}"] if rng.random() < 0.5 else []
        tree = settings.read(str(path))
        config.from_tree(config.merge(tree, overrides), str(path), overrides)
        return READ

    def named(rng: random.Random) -> str:
        try:
            return once(rng)
        except I2EError as error:
            if path.name not in str(error) and "--set" not in str(error) and "section.key=value" not in str(error):
                raise Unnamed(str(error)) from error
            raise

    return named


def _yaml(rng: random.Random, deep: int = 0) -> str:
    """Something that looks like YAML, with anchors, aliases, merges and tags."""
    if deep > 4 or rng.random() < 0.3:
        return rng.choice(
            [text(rng, 6), "1", "*a", "*b", "&a x", "~", "!!set {a}", "!!python/name:os.system", "'", "|\n  a", "0b_"]
        )
    parts = [_yaml(rng, deep + 1) for _ in range(rng.randrange(5))]
    anchor = rng.choice(["", "", "&a ", "&b ", "!!omap ", "!!map "])
    if rng.random() < 0.5:
        return f"{anchor}[{', '.join(parts)}]"
    names = ["pairs", "score", "path", "<<", "output", "? a", "[x]", "label", "1"]
    return f"{anchor}{{{', '.join(f'{rng.choice(names)}: {p}' for p in parts)}}}"


@target("marks")
def mark_files(folder: Path) -> Once:
    path = folder / "marks.jsonl"

    def once(rng: random.Random) -> str:
        path.write_bytes(mutated(corpus.MARKS, rng))
        with _naming(path):
            read = marks.read(str(path))
        before = read.num_rows
        marks.append(str(path), marks.Mark("f" * 32, 7, "right"))
        _same(before + 1, marks.read(str(path)).num_rows, "marks, after another")
        return READ

    return once


@target("records of commits and units")
def records(folder: Path) -> Once:
    from i2e_pipeline.dataset.published import manifest_of
    from i2e_pipeline.engine.records import Records
    from i2e_pipeline.engine.units import Units

    commits, units = folder / "_commits" / "pairs", folder / "units"
    commits.mkdir(parents=True)
    units.mkdir()
    path, unit, manifest = commits / "journal-000000001.json", units / "u-000000000001.json", folder / "manifest.json"
    whole = b'{"units": {"u-1": 3}, "format_version": 2, "dataset": "0123", "images": 3}'

    def once(rng: random.Random) -> str:
        path.write_bytes(mutated(corpus.journal(), rng, [corpus.unit()], 3))
        unit.write_bytes(mutated(corpus.unit(), rng, [corpus.journal()], 3))
        manifest.write_bytes(mutated(whole, rng, most=3))
        outcomes = []
        for named, read in (
            (path, lambda: Records(str(folder / "_commits")).read("pairs")),
            (unit, lambda: Units(str(folder)).known()),
            (manifest, lambda: manifest_of(str(folder))),
        ):
            try:
                with _naming(named):
                    read()
                outcomes.append(READ)
            except I2EError:
                outcomes.append(REFUSED)
        return READ if READ in outcomes else REFUSED

    return once


@target("an output that is verified")
def outputs(folder: Path) -> Once:
    """A small output whose records are damaged one or two at a time, as `i2e verify` and whoever locks it see it."""
    from i2e_pipeline.commands.verify import verify
    from i2e_pipeline.core import lock
    from i2e_pipeline.core.config import Config
    from i2e_pipeline.engine import merging
    from i2e_pipeline.engine.pipeline import Pipeline

    output = folder / "output"
    records = corpus.output(output)
    whole = {path: path.read_bytes() for path in records}
    lock_file, known = output / "_lock", [*whole.values(), corpus.LOCK]

    def once(rng: random.Random) -> str:
        touched = rng.sample(records, rng.randint(1, 2))
        for path in touched:
            content = whole[path]
            path.write_bytes(odd(content, rng) if rng.random() < 0.7 else mutated(content, rng, known, 3))
        if rng.random() < 0.5:
            content = corpus.LOCK
            lock_file.write_bytes(odd(content, rng) if rng.random() < 0.7 else mutated(content, rng, known, 3))
        pipeline = Pipeline(Config(output=str(output)), [])
        try:
            try:
                lock.refuse_held(str(output))
            except I2EError:
                lock_file.unlink()
            verify(pipeline, deep=rng.random() < 0.5)
            merging.finish(pipeline.tables)
            return READ
        finally:
            _remove(output)
            corpus.output(output)

    return once


# --- models and vectors ---------------------------------------------------------------------------------------------


@target("checkpoints")
def checkpoints(folder: Path) -> Once:
    import torch
    from safetensors.torch import save

    from i2e_pipeline.train import checkpoint

    place = folder / "step-00000001"
    place.mkdir()
    weights = save({"visual.proj": torch.zeros(4, 4), "text": torch.ones(3)})
    head = save(
        {
            "class_C": torch.arange(3),
            "entity_C": torch.arange(3),
            "weights_CD": torch.zeros(3, 4),
            "accumulators_C": torch.zeros(3),
        }
    )

    def once(rng: random.Random) -> str:
        stored = {
            "towers.safetensors": mutated(weights, rng, [head], 3),
            "head-00000-of-00001.safetensors": mutated(head, rng, [weights], 3),
        }
        if rng.random() < 0.5:
            stored[rng.choice(list(stored))] = weights
        for name, content in stored.items():
            (place / name).write_bytes(content)
        state = {
            "format_version": 1,
            "step": 1,
            "position": 1,
            "width": 4,
            "recipe": "a",
            "config": {},
            "dataset": "",
            "best": None,
            "counts": {},
            "classes": 3,
            "files": {name: len(content) for name, content in stored.items()},
            "versions": {},
        }
        said = json.dumps(state).encode()
        (place / "state.json").write_bytes(mutated(said, rng, most=2) if rng.random() < 0.3 else said)
        with _naming(place):
            read = checkpoint.load(place)
            dict(read.towers)
            list(read.head_rows(torch.arange(3), 4))
        return READ

    return once


@target("vectors and ground truths")
def vectors(folder: Path) -> Once:
    from i2e_pipeline.evaluate import revisited
    from i2e_pipeline.evaluate import vectors as npz

    stream = io.BytesIO()
    np.savez(stream, features=np.ones((6, 3), np.float32), labels=np.arange(6) // 2)
    packed = io.BytesIO()
    np.savez_compressed(packed, features=np.ones((6, 3), np.float32), labels=np.arange(6) // 2)
    gnd = [{"bbx": [1.0, 2.0, 3.0, 4.0], "easy": [0], "hard": [1], "junk": [2]}]
    truth = {"imlist": ["a", "b", "c"], "qimlist": ["q"], "gnd": gnd}
    arrays = {**truth, "gnd": [{**gnd[0], "easy": np.array([0])}]}
    known = {
        "a.npz": [stream.getvalue(), packed.getvalue()],
        "gnd.pkl": [pickle.dumps(t, p) for t in (truth, arrays) for p in (0, 2, 4)],
        "gnd.json": [json.dumps(truth).encode()],
    }

    def once(rng: random.Random) -> str:
        name = rng.choice(list(known))
        path = folder / name
        path.write_bytes(mutated(rng.choice(known[name]), rng, known[name], 4))
        with _naming(path):
            (npz.read_npz if name == "a.npz" else revisited.read_ground_truth)(str(path))
        return READ

    return once


# --- the explorer ---------------------------------------------------------------------------------------------------


@target("the explorer's addresses")
def explorer(folder: Path) -> Once:
    import explore_dataset
    from starlette.testclient import TestClient

    from i2e_pipeline.commands.explore import Place, explored
    from i2e_pipeline.explore.app import app

    place = explore_dataset.main(["--entities", "60", "--images", "120", "--units", "2", "--into", str(folder / "i2e")])
    shown = explored(Place.of(place), None, str(folder / "marks.jsonl"), str(folder / "index"))
    home = "http://127.0.0.1:8765"
    asked = TestClient(app(shown), home, follow_redirects=False)
    some = shown.queries.some(3)
    ids = [row["image_id"] for row in some]
    paths = [
        "/",
        "/go",
        "/entities",
        "/entities/Q{n}",
        "/images",
        "/images/{id}",
        "/images/{id}/near",
        "/images/{id}/story",
        "/images/{id}/picture",
        "/pairs/{id}",
        "/inputs/{x}/{n}/{n}/picture",
        "/rejects",
        "/rejects/{x}/{x}",
        "/mistakes",
        "/similar",
        "/mark",
        "/keys",
        "/api/hits",
        "/api/images",
        "/api/draw",
        "/api/implied",
        "/static/{x}",
        "/{x}",
    ]
    names = [
        "q",
        "type",
        "script",
        "domain",
        "min_images",
        "max_images",
        "min_probability",
        "max_probability",
        "min_fame",
        "with",
        "sort",
        "entity",
        "split",
        "unit",
        "mention",
        "text",
        "min_score",
        "max_clip",
        "offset",
        "most",
        "side",
        "but",
    ]
    values = [
        "",
        "0",
        "1",
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "9" * 18,
        "9" * 400,
        "all",
        "name",
        "-score",
        "hash",
        "images",
        "%",
        "_",
        "'",
        "'; DROP TABLE labels; --",
        "../../etc/passwd",
        "..%2f..%2fetc",
        "\0",
        "Latin",
        "Q1",
        *ids,
    ]

    def value(rng: random.Random) -> str:
        return rng.choice(
            [
                rng.choice(values),
                text(rng, 20).encode("utf-8", "replace").decode(),
                mutated(rng.choice(values).encode(), rng, most=2).decode("latin-1"),
            ]
        )

    def once(rng: random.Random) -> str:
        if rng.random() < 0.1:
            mark = {
                "image_id": rng.choice(ids),
                "entity_id": some[0]["entity_id"],
                "mark": rng.choice(["right", "wrong", "other", "x"]),
            }
            body = mutated(json.dumps(mark).encode(), rng, most=rng.choice([1, 3]))
            headers = {"origin": home, "content-type": "application/json"}
            answer = asked.post("/api/marks", content=body, headers=headers)
        else:
            path = rng.choice(paths).format(
                n=rng.choice([0, 1, 5, 10**17, "x"]), id=rng.choice([*ids, "0" * 32, "z"]), x=_quoted(value(rng))
            )
            answer = asked.get(path, params=[(rng.choice(names), value(rng)) for _ in range(rng.randrange(4))])
        if answer.status_code >= 500:
            raise AssertionError(f"{answer.status_code} for {answer.request.url}")
        if answer.status_code == 200 and "root:" in answer.text:
            raise AssertionError(f"a file of this machine is shown by {answer.request.url}")
        return READ if answer.status_code < 400 else REFUSED

    return once


def _quoted(said: str) -> str:
    from urllib.parse import quote

    return quote(said.encode("utf-8", "replace"), safe="") or "x"


def names() -> Iterable[str]:
    return list(TARGETS)
