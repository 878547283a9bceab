"""Small files that unpack to gigabytes, one for each door, and what becomes of each in bounded memory.

python -m tests.security.bombs [NAME …]     # prints a line of JSON for each
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

from fuzzing.contained import Say, contained

from i2e_pipeline.core import config, digests, lock
from i2e_pipeline.core.config import ImageLimits, PairsConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.dataset.published import manifest_of
from i2e_pipeline.engine import merging, seal
from i2e_pipeline.engine.records import Records
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.units import Units
from i2e_pipeline.evaluate import revisited, vectors
from i2e_pipeline.extract.text import read_texts
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.inputs import formats, listing, look, marks
from i2e_pipeline.train import checkpoint
from wikidata import source_files
from wikidata.source_files import DUMP, SourceError

SECONDS, MEMORY_MB = 60, 2500
PEAK_MB = 1300
"""Of what it must stay below; a bomb would take 3 GB and more."""
_MB = bytes(1 << 20)
_BLANKS = b" " * (1 << 20)

Bomb = Callable[[Path], str]
BOMBS: dict[str, Bomb] = {}


def bomb(made: Bomb) -> Bomb:
    BOMBS[made.__name__] = made
    return made


def _gzip() -> Any:
    return zlib.compressobj(1, wbits=31)


def _packed(path: Path, begin: Callable[[], Any], first: bytes = b'{"a":1},\n') -> Path:
    """`first`, and then 3 GB of blanks: of 50 streams, since packing takes its time."""
    packer = begin()
    streams = [packer.compress(first) + packer.flush()]
    packer = begin()
    streams += [packer.compress(_BLANKS * 60) + packer.flush()] * 50
    path.write_bytes(b"".join(streams))
    return path


def _told(error: Exception, path: Path) -> str:
    return str(error) if path.name in str(error) else f"an error that does not name the file: {error}"


def _refused(read: Callable[[], Any], path: Path) -> str:
    try:
        return f"read {read()}"
    except (I2EError, SourceError) as error:
        return _told(error, path)


def _read_dump(path: Path) -> str:
    (source,) = source_files.recognised([str(path)], DUMP)
    return _refused(lambda: sum(len(block) for block in source_files.blocks(source)), path)


@bomb
def dump_bz2(place: Path) -> str:
    return _read_dump(_packed(place / "dump.json.bz2", bz2.BZ2Compressor))


@bomb
def dump_xz(place: Path) -> str:
    return _read_dump(_packed(place / "dump.json.xz", lambda: lzma.LZMACompressor(preset=0)))


@bomb
def dump_gz(place: Path) -> str:
    return _read_dump(_packed(place / "dump.json.gz", _gzip))


@bomb
def dump_zst(place: Path) -> str:
    with pa.CompressedOutputStream(pa.OSFile(str(place / "dump.json.zst"), "wb"), "zstd") as file:
        file.write(b'{"a":1},\n')
        for _ in range(3000):
            file.write(_BLANKS)
    return _read_dump(place / "dump.json.zst")


@bomb
def dump_plain(place: Path) -> str:
    path = place / "dump.json"
    with path.open("wb") as file:
        file.write(b'{"a":1},\n')
        file.truncate(3 << 30)  # a hole: it takes no room on the disk
    (source,) = source_files.recognised([str(path)], DUMP)
    numbers = [pa.record_batch([pa.array([0])], ["n"])]
    try:
        return str(
            sum(b.num_rows for b in source_files.lines_of_pieces(numbers, source_files.pieces([source], 4 << 30)))
        )
    except SourceError as error:
        return str(error)


def _look(path: Path, **pairs: Any) -> str:
    """As a plan and a run read it: what it is, its texts, its images."""
    settings = PairsConfig(path=(str(path),), **pairs)
    try:
        (source,) = listing.listed(settings)
        found = look.look(source, settings, images=False)
        index = None
        if isinstance(found.index, pa.Table):
            index = str(path.parent / "index.parquet")
            pq.write_table(found.index, index)
        shard = source.shard(settings, index)
        rows = 0
        for _, batch in formats.columns(shard, [settings.text_column]):
            rows += formats.texts(shard, batch)[0].num_rows
            if rows > 50:
                break
        with formats.images(shard) as images:
            read = sum(1 for _ in images.read(range(min(found.rows, 5))))
        return f"read {rows} {read}"
    except I2EError as error:
        return _told(error, path)


def _parquet(path: Path, **how: Any) -> Path:
    value = "x" * (30 << 20)
    numbers = pa.array([0] * 3000, pa.int32())
    texts = pa.DictionaryArray.from_arrays(numbers, pa.array([value]))
    images = pa.DictionaryArray.from_arrays(numbers, pa.array([value.encode()]))
    pq.write_table(pa.table({"caption": texts, "jpg": images}), path, **how)
    return path


@bomb
def parquet_dictionary(place: Path) -> str:
    return _look(_parquet(place / "a.parquet", dictionary_pagesize_limit=1 << 30))


@bomb
def parquet_shared_beginnings(place: Path) -> str:
    """DELTA_BYTE_ARRAY stores of a value what it does not share with the one before."""
    batch = pa.record_batch({"caption": ["x" * (3 << 20)] * 20, "jpg": [b"x"] * 20})
    how = {"use_dictionary": False, "column_encoding": {"caption": "DELTA_BYTE_ARRAY"}}
    with pq.ParquetWriter(place / "a.parquet", batch.schema, **how) as file:
        for _ in range(50):
            file.write_batch(batch)
    return _look(place / "a.parquet")


@bomb
def parquet_page_that_says_it_is_2_gb(place: Path) -> str:
    path = place / "a.parquet"
    table = pa.table({"jpg": [b"x" * 100] * 9, "caption": ["a" * 100] * 9})
    pq.write_table(table, path, use_dictionary=False, compression="zstd", write_page_index=False)
    offset = pq.read_metadata(path).row_group(0).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    assert content[offset : offset + 3] == b"\x15\x00\x15"
    end = offset + 3
    while content[end] & 0x80:
        end += 1
    content[offset + 3 : end + 1] = b"\xfe\xff\xff\xff\x0f"  # 2³¹ - 1, zigzag
    path.write_bytes(content)
    return _look(path)


@bomb
def jsonl_gz(place: Path) -> str:
    path = _packed(place / "a.jsonl.gz", _gzip, b'{"caption": "a"}\n{')
    return _look(path, image_column="file_name")


@bomb
def csv_gz(place: Path) -> str:
    path = _packed(place / "a.csv.gz", _gzip, b'caption,jpg\n"a')
    return _look(path)


@bomb
def json_deep(place: Path) -> str:
    (place / "a.jsonl").write_text('{"caption": ' + "[" * 10**6 + "\n")
    return _look(place / "a.jsonl", image_column="file_name")


def _tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


@bomb
def tar_gz(place: Path) -> str:
    path = place / "a.tar"
    path.write_bytes(gzip.compress(_tar(place / "b.tar", [("a.jpg", _MB), ("a.txt", b"a")]).read_bytes()))
    (place / "b.tar").unlink()
    return _look(path)


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    head = bytearray(512)
    head[: len(name)], head[100:108], head[124:136] = name, b"0000644\0", b"%011o\0" % size
    head[136:148], head[156:157], head[257:265], head[148:156] = b"00000000000\0", kind, b"ustar  \0", b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@bomb
def tar_of_long_names_of_long_names(place: Path) -> str:
    name = b"a.jp".ljust(512, b"\0")
    chain = (_header(b"././@LongLink", 4, b"L") + name) * 5000
    (place / "a.tar").write_bytes(chain + _header(b"a.jpg", 3, b"0") + b"abc".ljust(512, b"\0") + bytes(1024))
    return _look(place / "a.tar")


@bomb
def tar_that_goes_back(place: Path) -> str:
    """A size below zero: the next header is the one before, for ever."""
    pax = _header(b"x", 14, b"x").replace(b"ustar  \0", b"ustar\0" + b"00")
    pax = pax[:148] + b" " * 8 + pax[156:]
    pax = pax[:148] + b"%06o\0 " % sum(pax) + pax[156:]
    said = b"14 size=-1024\n".ljust(512, b"\0")
    (place / "a.tar").write_bytes(pax + said + _header(b"a.jpg", 3, b"0") + b"abc".ljust(512, b"\0") + bytes(1024))
    return _look(place / "a.tar")


def _image(stored: bytes) -> str:
    opened = open_rgb(stored, ImageLimits())
    return f"{opened.reason.value}: {opened.detail}" if isinstance(opened, Rejected) else f"read {opened[1]}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _png(sides: tuple[int, int], pixels: bytes, *others: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", *sides, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(_MB) for _ in range(megabytes)) + packer.flush()


@bomb
def png_of_more_pixels_than_it_says(place: Path) -> str:
    return _image(_png((64, 64), _zeros(500)))


@bomb
def png_that_says_so(place: Path) -> str:
    return _image(_png((30_000, 30_000), _zeros(100)))


@bomb
def png_text(place: Path) -> str:
    small = zlib.compress(bytes(64 * (3 * 64 + 1)))
    return _image(_png((64, 64), small, *[_chunk(b"zTXt", b"a\0\0" + _zeros(300))] * 10))


@bomb
def png_profile(place: Path) -> str:
    small = zlib.compress(bytes(64 * (3 * 64 + 1)))
    return _image(_png((64, 64), small, _chunk(b"iCCP", b"a\0\0" + _zeros(500))))


def _saved(kind: str, **how: Any) -> bytearray:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(stream, kind, **how)
    return bytearray(stream.getvalue())


@bomb
def webp_sides(place: Path) -> str:
    stored = _saved("WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    assert stored[12:16] == b"VP8X"
    stored[24:30] = (16383).to_bytes(3, "little") * 2
    return _image(bytes(stored))


@bomb
def gif_frames(place: Path) -> str:
    """One frame counts, however many follow, and however large."""
    frames = [Image.new("P", (64, 64), n % 200) for n in range(2000)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return _image(stream.getvalue())


@bomb
def gif_screen(place: Path) -> str:
    stored = _saved("GIF")
    stored[6:10] = b"\xff\xff\xff\xff"
    return _image(bytes(stored))


@bomb
def tiff_strips(place: Path) -> str:
    stream = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(stream, "TIFF", compression="group4")
    return _image(stream.getvalue())


@bomb
def bmp_sides(place: Path) -> str:
    stored = _saved("BMP")
    stored[18:26] = struct.pack("<ii", 60_000, 60_000)
    return _image(bytes(stored))


@bomb
def jpeg_sides(place: Path) -> str:
    stored = _saved("JPEG")
    at = stored.index(b"\xff\xc0")
    stored[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    return _image(bytes(stored))


def _load(place: Path, text: str) -> str:
    (place / "a.yaml").write_text(text)
    try:
        config.load(str(place / "a.yaml"), [])
    except I2EError as error:
        return str(error)
    return "read"


@bomb
def yaml_billion_laughs(place: Path) -> str:
    levels = ["&a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return _load(place, f"pairs: {{path: [{', '.join(levels)}]}}\n")


@bomb
def yaml_merges(place: Path) -> str:
    many = ", ".join(f"k{n}: 1" for n in range(20_000))
    return _load(place, f"a: &a {{{many}}}\nb:\n" + "".join(f"  - {{<<: *a, z: {n}}}\n" for n in range(20_000)))


@bomb
def yaml_merges_of_merges(place: Path) -> str:
    levels = "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
    return _load(place, "a0: &a0 {k: 1}\n" + levels)


@bomb
def yaml_depth(place: Path) -> str:
    return _load(place, "pairs: " + "[" * 100_000)


@bomb
def npz_of_zeros(place: Path) -> str:
    with zipfile.ZipFile(place / "v.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (1 << 30, 8)})
        with packed.open("features.npy", "w", force_zip64=True) as file:
            file.write(head.getvalue() + bytes(1 << 20))
    try:
        return f"read {len(vectors._arrays(str(place / 'v.npz')))}"
    except I2EError as error:
        return str(error)


def _hole(path: Path, first: bytes = b"", size: int = 3 << 30) -> Path:
    """3 GB of zeros, which take no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(first)
        file.truncate(size)
    return path


@bomb
def caption_of_100_mb(place: Path) -> str:
    ids, nothing = pa.array([bytes(16)], pa.binary(16)), pa.nulls(1, pa.string())
    caption = "&amp;lt;New York " * (100 * 2**20 // 16)
    columns = {"shard": pa.array([0], pa.int32()), "row": pa.array([0]), "pair_id": ids, "key": nothing, "url": nothing}
    batch = pa.RecordBatch.from_pydict({**columns, "caption": pa.array([caption]), "group": nothing})
    made = dict(read_texts([batch]))
    return f"read {len(made['texts'].column('text')[0].as_py())}"


@bomb
def journal_of_3_gb(place: Path) -> str:
    path = _hole(place / "_commits" / "pairs" / "journal-000000001.json", b'{"anew": false,')
    return _refused(lambda: Records(str(place / "_commits")).read("pairs"), path)


@bomb
def journal_deep(place: Path) -> str:
    path = place / "_commits" / "pairs" / "journal-000000001.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"anew": false, "gone": ' + "[" * 10**7)
    return _refused(lambda: Records(str(place / "_commits")).read("pairs"), path)


@bomb
def unit_of_3_gb(place: Path) -> str:
    path = _hole(place / "units" / "u-1.json", b'{"name": "u-1",')
    return _refused(lambda: Units(str(place)).known(), path)


@bomb
def unit_deep(place: Path) -> str:
    path = place / "units" / "u-1.json"
    path.parent.mkdir()
    path.write_text('{"name": ' * 10**6)
    return _refused(lambda: Units(str(place)).known(), path)


@bomb
def change_of_files_of_3_gb(place: Path) -> str:
    path = _hole(place / "_commits" / "merging.json", b'{"staging": "_staging/a",')
    return _refused(lambda: merging.finish(Tables(str(place))), path)


@bomb
def manifest_of_3_gb(place: Path) -> str:
    path = _hole(place / "manifest.json", b'{"units": {}, ')
    return _refused(lambda: manifest_of(str(place)), path)


@bomb
def seal_of_zeros(place: Path) -> str:
    packed = zlib.compressobj(9)
    content = packed.compress(b'{"a": "') + b"".join(packed.compress(_MB) for _ in range(3000)) + packed.flush()
    (place / "_seal").write_bytes(digests.of_bytes(content).encode() + b"\n" + content)
    return _refused(lambda: seal.read(str(place)), place / "_seal")


@bomb
def lock_of_3_gb(place: Path) -> str:
    _hole(place / "_lock", b'{"host": "')
    lock.refuse_held(str(place))
    return "read as nobody's"


@bomb
def marks_of_3_gb(place: Path) -> str:
    path = _hole(place / "marks.jsonl", b'{"image_id": "')
    return _refused(lambda: marks.read(str(path)), path)


@bomb
def marks_gz(place: Path) -> str:
    path = _packed(place / "marks.jsonl.gz", _gzip, b"{}\n")
    return _refused(lambda: marks.read(str(path)), path)


@bomb
def ground_truth_of_3_gb(place: Path) -> str:
    path = _hole(place / "gnd.pkl", b"\x80\x04")
    return _refused(lambda: revisited.read_ground_truth(str(path)), path)


@bomb
def ground_truth_that_says_it_is_large(place: Path) -> str:
    """A text of 2⁶² bytes, of which there are three."""
    path = place / "gnd.pkl"
    path.write_bytes(b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"abc.")
    return _refused(lambda: revisited.read_ground_truth(str(path)), path)


class _Nothing:
    """An array of 2³⁰ texts of no letter, which take no byte."""

    def __reduce__(self) -> Any:
        state = (1, (1 << 30,), np.dtype("U0"), False, b"")
        return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state


@bomb
def ground_truth_of_many_nothings(place: Path) -> str:
    path = place / "gnd.pkl"
    path.write_bytes(pickle.dumps({"gnd": [], "imlist": _Nothing(), "qimlist": []}))
    return _refused(lambda: revisited.read_ground_truth(str(path)), path)


_MAPPED = 1 << 29
"""Bytes of a file that is mapped, which counts as memory here."""


def _checkpoint(place: Path) -> Path:
    folder = place / "step-00000001"
    folder.mkdir()
    state = {
        "format_version": 1, "step": 1, "position": 1, "width": 8, "recipe": "a", "config": {}, "dataset": "",
        "best": None, "counts": {}, "classes": 0, "files": {"towers.safetensors": _MAPPED}, "versions": {},
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@bomb
def checkpoint_of_a_header(place: Path) -> str:
    folder = _checkpoint(place)
    path = _hole(folder / "towers.safetensors", (_MAPPED - 8).to_bytes(8, "little") + b"{", _MAPPED)
    return _refused(lambda: dict(checkpoint.load(folder).towers), path)


@bomb
def checkpoint_that_says_it_is_large(place: Path) -> str:
    """A header of a tensor of 2⁶⁰ numbers."""
    folder = _checkpoint(place)
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 1 << 62]}}).encode()
    path = _hole(folder / "towers.safetensors", len(header).to_bytes(8, "little") + header, _MAPPED)
    return _refused(lambda: dict(checkpoint.load(folder).towers), path)


@bomb
def checkpoint_state_deep(place: Path) -> str:
    folder = _checkpoint(place)
    (folder / "state.json").write_text('{"step": ' + "[" * 10**7)
    return _refused(lambda: checkpoint.load(folder), folder / "state.json")


DOORS: dict[str, tuple[str, ...]] = {
    "dumps, pages, tables of Wikidata and Wikipedia, plain, bz2, gz, xz, zst": ("dump_",),
    "lines of a dump": ("dump_plain",),
    "Parquet": ("parquet_",),
    "tars": ("tar_",),
    "CSV, TSV, JSON lines, also gzip": ("jsonl_gz", "csv_gz", "json_deep"),
    "images": ("png_", "webp_", "gif_", "tiff_", "bmp_", "jpeg_"),
    "alt-texts": ("caption_",),
    "configs, `--set`": ("yaml_",),
    "models, checkpoints, vectors": ("checkpoint_", "npz_"),
    "ground truths that are pickles": ("ground_truth_",),
    "marks": ("marks_",),
    "records of an output: units, commits, seal, lock, manifest": (
        "unit_", "journal_", "change_", "seal_", "lock_", "manifest_",
    ),
}  # fmt: skip
"""Doors of docs/security.md, and how the names of their bombs begin."""


def main(names: Iterable[str]) -> None:
    for name in names:
        with tempfile.TemporaryDirectory() as place:

            def work(say: Say, name: str = name, place: str = place) -> None:
                say(BOMBS[name](Path(place)))

            ended = contained(work, SECONDS, MEMORY_MB)
        told = {"name": name, "said": ended.said, "how": ended.how, "trace": ended.trace}
        print(json.dumps({**told, "seconds": round(ended.seconds, 1), "peak_mb": round(ended.peak_mb)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or BOMBS)
