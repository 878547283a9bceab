"""What a source file is, by its first bytes and not by its name, and the lines in it.

A page of a server that was saved under the dump's name, a zip, half a download: each reads as lines of which none is an
entity, or as too few of them, and nobody notices. So every file is looked at before it is read (`recognised`), plain
ones at their end, too (`unclosed`), a compressed one that does not end where it should is an error (`blocks`), and what
was read is weighed (`doubt`).

Known are plain text, bzip2, gzip, xz and zstd, also of several streams one after the other.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs as pafs

from wikidata.items import bare

DUMP = "a Wikidata JSON dump, an entity a line (latest-all.json.bz2)"
POPULARITY = "a CSV of `qid,number`"
ANCHORS = "a TSV of `surface<TAB>qid<TAB>count`"
REDIRECTS = "a TSV of `from<TAB>into`"
IMPORTANCE = "wikimedia_importance (a TSV of `language, type, title, importance, wikidata_id`)"
PAGES = "Wikipedia's pages as XML (enwiki-latest-pages-articles.xml.bz2)"
SQL = "a table of Wikipedia's as SQL (enwiki-latest-redirect.sql.gz)"

BLOCK = 256 << 10
"""Bytes of a file, as it lies there, that are read together."""
_SMALL = 8 << 10
PIECE_BLOCK = 1 << 20
"""Bytes of a plain file that are read together. Reading 4 MB at once takes three times as long a byte, each copy being
new memory, but that is little beside what is made of the lines."""
MAX_LINE = 256 << 20
"""Bytes of a line; Wikidata's longest entities have some 10 MB. Without a bound, a few kilobytes that unpack to
gigabytes of no line end fill the memory."""
_UNPACKED = 4 << 20
"""Bytes that are unpacked together, however little they were packed into."""
_HEAD = 64 << 10
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n\0"
"""What may stand behind a text; an interrupted copy leaves NULs."""
_DAMAGES = (EOFError, OSError, zlib.error, lzma.LZMAError)

_COMPRESSIONS = {b"BZh": "bz2", b"\x1f\x8b": "gz", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
_CODECS = (".bz2", ".gz", ".zst", ".lz4", ".snappy", ".deflate")
"""Names by which Hadoop chooses a codec, whatever the file holds."""
_DOWNLOAD = "download the file again"
_UNPACK = "unpack it first"
_OTHER_FORM = "take the file in the other form"
_OTHER_FILE = "name the other file"
_FROM_UTF16 = "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
_OTHERS: Sequence[tuple[bytes, str, str]] = (
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", _DOWNLOAD),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed with lz4", _UNPACK),
    (b"\x1f\x9d", "compressed with compress", _UNPACK),
    (b"PAR1", "a Parquet file", "give the text that it was made of"),
    (b"ARROW1", "an Arrow file", "give the text that it was made of"),
    (b"SQLite format 3", "an SQLite database", "export it as text"),
    (b"%PDF", "a PDF", _DOWNLOAD),
    (b"\xff\xfe\x00\x00", "text in UTF-32", "convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    (b"\x00\x00\xfe\xff", "text in UTF-32", "convert it to UTF-8 (iconv -f UTF-32 -t UTF-8)"),
    (b"\xff\xfe", "text in UTF-16", _FROM_UTF16),
    (b"\xfe\xff", "text in UTF-16", _FROM_UTF16),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself (git lfs pull)"),
)
_MARKUP: Sequence[tuple[re.Pattern[bytes], str, str]] = (
    (
        re.compile(rb"<!doctype html|<html|<head|<body", re.IGNORECASE),
        "an HTML page",
        f"{_DOWNLOAD}: the server sent a page",
    ),
    (re.compile(rb"<\?xml|<mediawiki|<rdf:|<!--", re.IGNORECASE), "XML", _OTHER_FORM),
    (
        re.compile(rb"(?:#[^\n]*\n\s*)*(?:<\w+:/|@prefix\s|@base\s|prefix\s+[\w-]*:\s*<|_:\w+ <)", re.IGNORECASE),
        "RDF (N-Triples or Turtle)",
        _OTHER_FORM,
    ),
    (
        re.compile(
            rb"-- (?:mysql|mariadb|postgresql|phpmyadmin)|/\*[!M]|(?:drop table|create table|insert into) [`\"]",
            re.IGNORECASE,
        ),
        "an SQL dump",
        _OTHER_FORM,
    ),
    (re.compile(rb"<\w"), "markup", _OTHER_FORM),
)


_MADE_OF = {
    PAGES: (re.compile(rb"<mediawiki\b|<page>"), "XML"),
    SQL: (re.compile(rb"(?i)CREATE TABLE|INSERT INTO"), "an SQL dump"),
}
"""Of sources that are markup themselves: what is in the head of each, and what it then is."""


class SourceError(ValueError):
    """A source that is not what it should be; the message names the file, what it seems to be and the remedy."""


OpenFileSystem = Callable[[str], tuple[pafs.FileSystem, str]]
"""From a path or URI to its file system and the path within it."""


def of_its_own(path: str) -> tuple[pafs.FileSystem, str]:
    """As pyarrow opens a URI by itself: a store with the credentials of the environment."""
    if "://" in path:
        filesystem, inner = pafs.FileSystem.from_uri(quote(path, safe="/:?=&%@+,;!$'()*~[]"))
        return filesystem, inner
    return pafs.LocalFileSystem(), path


@dataclass(frozen=True)
class Source:
    """A file to read lines from."""

    path: str
    """A path of this machine, or a URI that pyarrow.fs knows."""
    compression: str | None
    """bz2, gz, xz or zst, by its bytes."""
    size: int
    """Bytes as it lies there."""
    begins: str = ""
    """Its first characters, for messages."""
    open_filesystem: OpenFileSystem = field(default=of_its_own, compare=False, repr=False)
    """How a process that reads it opens what it lies in; it travels to Spark's workers."""

    @property
    def splittable(self) -> bool:
        """Can Spark read it by many tasks? Plain text and bzip2, where Hadoop, which goes by names, sees the same."""
        name = self.path.rpartition("/")[2]
        if name.startswith((".", "_")) or ":" in name:  # Hadoop passes these over, and cannot open that one
            return False
        return (
            name.endswith(".bz2") if self.compression == "bz2" else not self.compression and not name.endswith(_CODECS)
        )


def recognised(paths: Iterable[str], wanted: str, open_filesystem: OpenFileSystem = of_its_own) -> list[Source]:
    """The files as sources, empty ones left out.

    wanted   what they should be, in words (`DUMP`)
    Raises SourceError, with file and remedy, for one that cannot be read as lines, and where all are empty.
    """
    named = list(paths)
    found = [source for path in named if (source := _look_at(path, wanted, open_filesystem)) is not None]
    if not found:
        said = f"{named[0]} is empty" if len(named) == 1 else f"the {len(named)} files are empty ({named[0]} …)"
        raise SourceError(
            f"{said}: {_DOWNLOAD}. Wanted is {wanted}" if named else f"there is no file: wanted is {wanted}"
        )
    return found


def _look_at(path: str, wanted: str, open_filesystem: OpenFileSystem) -> Source | None:
    filesystem, inner = open_filesystem(path)
    info = filesystem.get_file_info(inner)
    if info.type != pafs.FileType.File:
        raise FileNotFoundError(f"{path} does not exist")
    with filesystem.open_input_stream(inner, compression=None) as stream:
        head = bytes(stream.read(_HEAD))
    if not head:
        return None
    compression = _compression(head)
    source = Source(path, compression, info.size, open_filesystem=open_filesystem)
    if compression:
        head = _first_bytes(source)
    packed = f" (within {compression})" if compression else ""
    what, remedy = (f"{_compression(head)} again", "unpack it once") if _compression(head) else _foreign(head)
    begins = head.removeprefix(_BOM)[:60].decode("utf-8", "replace").strip()
    if not what and wanted == DUMP and not _may_be_json(head):
        what, remedy = f"no JSON, it begins with {begins!r}", f"{_DOWNLOAD}, or leave it out"
    if (named := _MADE_OF.get(wanted)) and what in ("", "markup", named[1]):
        ours = named[0].search(head)
        what, remedy = ("", "") if ours else (f"no {named[1]} of that kind, it begins with {begins!r}", _OTHER_FILE)
    if what:
        raise SourceError(f"{path} is {what}{packed}: {remedy}. Wanted is {wanted}")
    return replace(source, begins=begins)


def _may_be_json(head: bytes) -> bool:
    """Is there a line among the first that an object may begin in? Those that only open or close the array, and blank
    ones, say nothing."""
    said = [text for line in head.split(b"\n") if (text := bare(line)[0])]
    return not said or any(text.startswith(b"{") for text in said)


def _compression(head: bytes) -> str | None:
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def _foreign(head: bytes) -> tuple[str, str]:
    """What these bytes are, where they are no lines of ours, and the remedy; ("", "") for all else."""
    if head[257:262] == b"ustar":
        return "a tar archive", f"{_UNPACK} (tar -xf)"
    text = head.removeprefix(_BOM).lstrip()
    for magic, what, remedy in _OTHERS:
        if head.startswith(magic):
            return what, remedy
    for pattern, what, remedy in _MARKUP:
        if pattern.match(text):
            return what, remedy
    if len(head) >= 4 and (not any(head[1:40:2]) or not any(head[:40:2])) and any(head[:40]):
        return "text in UTF-16", _FROM_UTF16  # of ASCII's letters every other byte is 0
    return ("binary", _DOWNLOAD) if head[:4].count(0) > 1 else ("", "")  # one NUL may be in a name


def _first_bytes(source: Source) -> bytes:
    """Of the unpacked text; b"" where the file is damaged before it has any."""
    head = b""
    try:
        for piece in _unpacked(source, _SMALL):
            head += piece
            if len(head) >= _HEAD:
                break
    except _DAMAGES:
        pass
    return head


class _Gzip:
    """zlib's, called as those of bz2 and xz are."""

    def __init__(self) -> None:
        self._of = zlib.decompressobj(wbits=31)

    def decompress(self, read: bytes, most: int) -> bytes:
        waiting = self._of.unconsumed_tail
        return self._of.decompress(waiting + read if waiting else read, most)

    @property
    def eof(self) -> bool:
        return self._of.eof

    @property
    def unused_data(self) -> bytes:
        return self._of.unused_data


_STREAMS: Mapping[str, Callable[[], Any]] = {
    "bz2": bz2.BZ2Decompressor,
    "gz": _Gzip,
    "xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
}
_XZ_MEMORY = 1 << 30
"""Bytes that a stream of xz may ask for; `xz -9` asks for 65 MB, and a header may say 4 GB."""


def _unpacked(source: Source, size: int) -> Iterator[bytes]:
    """The unpacked file in pieces, of `size` bytes as they lie there."""
    filesystem, inner = source.open_filesystem(source.path)
    with filesystem.open_input_stream(inner, compression=None) as raw:
        if begin := _STREAMS.get(source.compression or ""):
            yield from _of_streams(raw, begin, size)
            return
        with pa.CompressedInputStream(raw, "zstd") if source.compression == "zst" else nullcontext(raw) as stream:
            while read := bytes(stream.read(size)):
                yield read


def _of_streams(raw: Any, begin: Callable[[], Any], size: int) -> Iterator[bytes]:
    """What streams that stand one after the other hold. The files that Python's modules open take a stream that is
    damaged at its beginning for the end of the file."""
    stream, begun, whole = begin(), False, False
    while read := bytes(raw.read(size)):
        while read := read if begun else read.lstrip(b"\0"):  # between streams may be padding
            more = True
            while more:
                try:
                    piece = stream.decompress(read, _UNPACKED)
                except _DAMAGES as error:
                    if begun or not whole:
                        raise
                    raise OSError(f"behind a whole stream stands something else: {error}") from None
                begun, read = True, b""
                if piece:
                    yield piece
                more = len(piece) == _UNPACKED and not stream.eof
            if stream.eof:
                read, stream, begun, whole = stream.unused_data, begin(), False, True
    if begun:
        raise EOFError("it ends within a compressed stream")


def head_of(source: Source) -> str:
    """The first characters of the unpacked file."""
    return _first_bytes(source).removeprefix(_BOM).decode("utf-8", "replace")


def blocks(source: Source, partial: bool = False, size: int = BLOCK, separator: bytes = b"\n") -> Iterator[bytes]:
    """The unpacked file in blocks of whole lines; the last line may lack its end.

    partial   what stands before a damage or a cut is taken, but for some kilobytes
    size      bytes of the file, as it lies there, that are read together
    separator what ends a line
    Raises SourceError where the file cannot be read to its end.
    """
    rest: list[bytes] = []
    held = 0
    try:
        for piece in _unpacked(source, min(size, _SMALL) if partial else size):
            if rest and len(separator) > 1:  # it may begin in what was read before
                last = rest.pop()
                rest += [begin] if (begin := last[: 1 - len(separator)]) else []
                piece = last[1 - len(separator) :] + piece
            whole, end, after = piece.rpartition(separator)
            if end:
                yield b"".join([*rest, whole, end])
                rest, held = [after] if after else [], len(after)
            else:
                rest.append(piece)
                held += len(piece)
                _refuse_endless(held)
    except _DAMAGES as error:
        if "too much memory" in str(error):
            raise SourceError(f"{source.path} was packed with a long window (zstd --long): {_UNPACK}") from None
        if not partial:
            raise SourceError(
                f"{source.path} is damaged or cut short ({str(error).strip() or type(error).__name__}): {_DOWNLOAD}"
            ) from None
    if rest:
        yield b"".join(rest)


def _refuse_endless(held: int) -> None:
    if held > MAX_LINE:
        raise OSError(f"a line of more than {MAX_LINE >> 20} MB")


def lines(
    batches: Iterable[pa.RecordBatch], sources: Sequence[Source], partial: bool = False, separator: bytes = b"\n"
) -> Iterator[pa.RecordBatch]:
    """The lines of the sources that a column of their numbers names, as `value: binary`."""
    for batch in batches:
        for number in batch.column(0).to_pylist():
            for block in blocks(sources[number], partial, separator=separator):
                read = block.removesuffix(separator).split(separator)
                yield pa.RecordBatch.from_arrays([pa.array(read, pa.binary())], ["value"])


@dataclass(frozen=True)
class Piece:
    """The lines of a plain file that begin within some of its bytes."""

    source: Source
    start: int
    end: int


def pieces(sources: Iterable[Source], size: int) -> list[Piece]:
    """Plain files cut after every so many bytes; each of their lines begins in one piece."""
    return [Piece(s, start, min(start + size, s.size)) for s in sources for start in range(0, s.size, size)]


def lines_of_pieces(
    batches: Iterable[pa.RecordBatch], cut: Sequence[Piece], partial: bool = False, size: int = PIECE_BLOCK
) -> Iterator[pa.RecordBatch]:
    """The lines of the pieces that a column of their numbers names, as `value: binary`.

    partial   as of `blocks`
    size      bytes that are read together, and whose lines are a batch
    """
    for batch in batches:
        for number in batch.column(0).to_pylist():
            for block in _blocks_of(cut[number], partial, size):
                read = block.removesuffix(b"\n").split(b"\n")
                yield pa.RecordBatch.from_arrays([pa.array(read, pa.binary())], ["value"])


def _blocks_of(piece: Piece, partial: bool, size: int) -> Iterator[bytes]:
    """A piece in blocks of whole lines, without the file's byte order mark; the file's last line may lack its end."""
    rest: list[bytes] = []
    held = 0
    try:
        filesystem, inner = piece.source.open_filesystem(piece.source.path)
        with filesystem.open_input_file(inner) as file:
            # The line end before the first byte says whether a line begins there.
            place = max(0, piece.start - 1)
            file.seek(place)
            begun = not piece.start
            while read := bytes(file.read(size)):
                begin, place = place, place + len(read)
                if not begun:
                    first = read.find(b"\n") + 1
                    if begin + first >= piece.end or (not first and place >= piece.end):
                        return
                    begin, read, begun = begin + first, read[first:], first > 0
                    if not begun:
                        continue
                elif not begin:
                    read = read.removeprefix(_BOM)
                    begin = place - len(read)
                over = place >= piece.end
                last = read.find(b"\n", max(0, piece.end - 1 - begin)) if over else read.rfind(b"\n")
                if last >= 0:
                    yield b"".join([*rest, read[: last + 1]])
                    rest = []
                    if over:
                        return
                    held = 0
                rest.append(read[last + 1 :])
                held += len(rest[-1])
                _refuse_endless(held)
    except OSError as error:
        if not partial:
            raise SourceError(f"{piece.source.path} cannot be read ({str(error).strip()}): {_DOWNLOAD}") from None
    if any(rest):
        yield b"".join(rest)


@dataclass(frozen=True)
class Read:
    """What the lines of a dump were."""

    entities: int
    """Items that were kept."""
    rejected: dict[str, int]
    """Lines by `reasons.Reason`."""
    opens: int
    """Lines that open a JSON array, alone or before an item."""
    closes: int
    """Lines that close one."""


_NO_LINES = ("bracket", "blank")
_INVALID = ("not_utf8", "not_json", "bad_shape", "bad_id")
_SOME = 0.05
"""Share of lines that are no JSON entities from which on a dump is damaged. Wikidata's own has none."""


def invalid(read: Read) -> str | None:
    """How many lines are no JSON entities, and why; None where there is none."""
    bad = {reason: n for reason in _INVALID if (n := read.rejected.get(reason, 0))}
    return f"{sum(bad.values()):,} of its {_lines(read):,} lines are no entities ({_counted(bad)})" if bad else None


def _lines(read: Read) -> int:
    return read.entities + sum(n for reason, n in read.rejected.items() if reason not in _NO_LINES)


def _counted(rejected: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(rejected.items(), key=lambda r: (-r[1], r[0])))


def doubt(read: Read, sources: Sequence[Source]) -> str | None:
    """Why what was read can hardly be the whole of a dump, or None."""
    total = _lines(read)
    begins = f"; {sources[0].path} begins with {sources[0].begins!r}"
    if not read.entities:
        counted = {reason: n for reason, n in read.rejected.items() if reason not in _NO_LINES and n}
        said = _counted(counted) or "there is no line"
        return f"none of its {total:,} lines is an item that is kept ({said}){begins}. Wanted is {DUMP}"
    if sum(read.rejected.get(reason, 0) for reason in _INVALID) > _SOME * total:
        return f"{invalid(read)}{begins}. Wanted is {DUMP}"
    return _unpaired(read.opens, read.closes)


def _unpaired(opens: int, closes: int) -> str | None:
    if opens > closes:
        return "the array that it opens does not close: the end is missing"
    if opens < closes:
        return "it closes an array that it does not open: the beginning is missing"
    return None


def unclosed(sources: Sequence[Source]) -> str | None:
    """Why plain files can hardly be the whole of a dump, by their first and last lines, before hours are spent on them.

    None where all is well, and where a file is compressed: its end is known when it was read (`doubt`).
    """
    if any(source.compression for source in sources):
        return None
    ends = [_first_and_last_line(source) for source in sources]
    return _unpaired(sum(bare(first)[1] for first, _ in ends), sum(bare(last)[2] for _, last in ends))


def _first_and_last_line(source: Source) -> tuple[bytes, bytes]:
    """Of the lines that are not blank; of long ones the part at the file's end."""
    filesystem, inner = source.open_filesystem(source.path)
    with filesystem.open_input_file(inner) as file:
        head = bytes(file.read_at(_HEAD, 0))
        tail = bytes(file.read_at(_HEAD, max(0, source.size - _HEAD)))
    return head.removeprefix(_BOM).lstrip().partition(b"\n")[0], tail.rstrip(_BLANK).rpartition(b"\n")[2]


_RAISED = re.compile(rf"\b{SourceError.__name__}: (.+)")
_UNREAD = re.compile(r"while reading file (\S+?)\.\s")
_CAUSES = re.compile(r"Caused by: (?:[\w.$]+: )?(.+)")


def fault(error: Exception) -> str | None:
    """What a Spark job's error says of a source: a SourceError of a worker, or a file that Hadoop could not read to its
    end; None where it is about something else."""
    text = str(error)
    if raised := _RAISED.search(text):
        return raised[1].strip()
    if unread := _UNREAD.search(text):
        causes = _CAUSES.findall(text)
        path = unquote(unread[1]).removeprefix("file://")
        return f"{path} is damaged or cut short ({causes[-1].strip() if causes else 'no cause given'}): {_DOWNLOAD}"
    return None
