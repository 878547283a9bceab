"""Files wherever they lie: a local path, or a URI that pyarrow.fs knows (s3://, gs://, hdfs://, abfs://).

What is written here is whole or not there: it is written under a hidden name beside its place (`.NAME.HEX.tmp`) and
put in place when it is whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import posixpath
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from i2e_pipeline.core import stores
from i2e_pipeline.core.errors import AlreadyThere, I2EError, NoSuchFile

_WHOLE = 64 << 20
_WINDOW = 64 << 10
_WINDOWS = 4
_READ = 1 << 20
_COPIED = 8 << 20
_SMALL_READS = 32
_LARGEST_RECORD = 1 << 30
"""Bytes: as many as the journal of ten million files may have."""
_TRIES = 6
_FIRST_PAUSE = 0.5
"""Seconds; each further pause is twice as long, 15.5 s in all."""
_SWEPT_AFTER = 60.0
"""Seconds: a record takes milliseconds to write, so what is unfinished for so long was left by a writer that died."""
_TAKES_NO_MORE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_RENAMING = ("hdfs://", "viewfs://")
"""Remote file systems that rename in one step, as object stores do not."""
_UNFINISHED = re.compile(r"\.?(?P<name>.+)\.[0-9a-f]{32}\.tmp")
"""Names of what is being written; those of older versions began without the dot."""


T = TypeVar("T")
log = logging.getLogger(__name__)


class StoreError(I2EError, ValueError):
    """A path or URI that no file system is known for."""


class PatternError(I2EError, ValueError):
    """A glob that can name nothing."""


class BadName(I2EError, ValueError):
    """A file whose name is no text; the message names the folder and the remedy."""


class RecordError(I2EError, ValueError):
    """A record that is not whole JSON; the message names the file and the remedy."""


class TooLarge(I2EError, ValueError):
    """A file that holds more than whoever wrote it would have written."""


class LedOutside(I2EError, ValueError):
    """What a record names lies behind a link that leads out of its folder; the message names both and the remedy."""


@dataclass(frozen=True)
class FileInfo:
    path: str
    size: int
    """bytes"""
    modified: int
    """nanoseconds since 1970; 0 where the store does not say"""


def _quoted(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    authority, slash, inner = rest.partition("/")
    options = match.group() if (match := stores.QUERY.search(inner)) else ""
    return f"{scheme}://{authority}{slash}{quote(inner.removesuffix(options), safe=_OF_PATHS)}{options}"


_OF_PATHS = "/:=&@+,;!$'()*~"


def open_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path within it. Raises StoreError where none is known for it, and for
    a URI with a secret in it.

    A store is opened with the options of this process (core/stores.py); without any, as its own environment says.
    """
    path = path.removeprefix("file://")
    if "://" in path:
        try:
            stores.refuse_secret(path)
        except ValueError as error:
            raise StoreError(str(error)) from None
        try:
            if (found := stores.filesystem(path)) is not None:
                return found
            # A name may hold what no URI does: blanks, braces, letters that are not ASCII.
            filesystem, inner = pafs.FileSystem.from_uri(_quoted(path))
        except (ValueError, pa.ArrowNotImplementedError) as error:
            raise StoreError(
                f"{path}: {error}. Known are paths of this machine, s3://, gs://, abfs:// and hdfs://"
            ) from None
        return filesystem, inner
    return pafs.LocalFileSystem(), os.path.abspath(path)


AS_NAMED = ("__globPaths__", "false")
"""The option of Spark's readers with which a path is no glob. Spark has it for its own reads of tables. No escape does
this: a path with an escaped bracket is still looked for as a glob, and in one Hadoop takes no name with a colon
(HADOOP-14217)."""


def for_spark(path: str) -> str:
    """A file or folder as Spark is to be told of it, beside the option AS_NAMED: this one, whatever characters its name
    has.

    Spark takes one without a scheme for a path of its default file system.
    """
    return f"file://{open_filesystem(path)[1]}" if is_local(path) else stores.QUERY.sub("", path)


def at_home(path: str) -> str:
    """A path that a user wrote, with the home that `~` or `~NAME` at its beginning stands for. A URI stays as it is.

    Raises NoSuchFile for the home of a user who is not there.
    """
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = path[1:].partition("/")[0]
        raise NoSuchFile(f"{path}: there is no user {user} with a home; a folder of that name is written ./{path}")
    return found


def is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def join(base: str, *parts: str) -> str:
    return posixpath.join(base, *parts)


def exists(path: str) -> bool:
    filesystem, inner = open_filesystem(path)
    return bool(filesystem.get_file_info(inner).type != pafs.FileType.NotFound)


def info(path: str) -> FileInfo | None:
    """Of one file, under the path that was given; None where there is none."""
    filesystem, inner = open_filesystem(path)
    found = filesystem.get_file_info(inner)
    return FileInfo(path, found.size, found.mtime_ns or 0) if found.type == pafs.FileType.File else None


def is_folder(path: str) -> bool:
    filesystem, inner = open_filesystem(path)
    return bool(filesystem.get_file_info(inner).type == pafs.FileType.Directory)


def sizes(paths: Sequence[str]) -> dict[str, int | None]:
    """Bytes of each of these files; None where it is not there. In a store, one listing a folder."""
    found: dict[str, int | None] = dict.fromkeys(paths)
    folders: dict[tuple[str, str], list[str]] = {}
    for path in found:
        # A store's options stand behind a `?`.
        query = "" if is_local(path) else (match.group() if (match := stores.QUERY.search(path)) else "")
        folder = "" if is_local(path) else path.removesuffix(query).rpartition("/")[0]
        folders.setdefault((folder, query), []).append(path)

    def of_folder(place: tuple[str, str]) -> dict[str, int]:
        folder, query = place
        if folder:
            filesystem, inner = open_filesystem(folder + query)
            listed = {i.base_name: i for i in _listing(filesystem, inner, recursive=False)}
            infos = [listed.get(path.removesuffix(query).rpartition("/")[2]) for path in folders[place]]
        else:
            inners = [open_filesystem(path.removeprefix("file://"))[1] for path in folders[place]]
            infos = pafs.LocalFileSystem().get_file_info(inners)
        named = zip(folders[place], infos, strict=True)
        return {path: info.size for path, info in named if info is not None and info.type == pafs.FileType.File}

    with ThreadPoolExecutor(_SMALL_READS) as pool:
        for there in pool.map(of_folder, folders):
            found.update(there)
    return found


def list_folders(folder: str) -> list[str]:
    """Names of the folders directly in a folder, sorted; none where it is missing."""
    filesystem, inner = open_filesystem(folder)
    found = _listing(filesystem, inner, recursive=False)
    return sorted(posixpath.basename(i.path) for i in found if i.type == pafs.FileType.Directory)


def list_files(folder: str) -> list[FileInfo]:
    """All files below a folder, hidden ones too, sorted by path, relative to it; none where the folder is missing."""
    filesystem, inner = open_filesystem(folder)
    found = _listing(filesystem, inner, recursive=True)
    return sorted(
        (
            FileInfo(posixpath.relpath(i.path, inner), i.size, i.mtime_ns or 0)
            for i in found
            if i.type == pafs.FileType.File
        ),
        key=lambda i: i.path,
    )


_LONGEST_NAME, _LONGEST_PATH = 255, 2048
"""Bytes of a file's name, and letters of a path below an output, that file systems take."""


def is_below(path: str) -> bool:
    """Does this relative path lead to something below the folder that it counts from, wherever it came from, and can a
    disk hold it?"""
    parts = path.split("/")
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return False
    if longest > _LONGEST_NAME or len(path) > _LONGEST_PATH:
        return False
    return path != "" and not path.startswith("/") and ".." not in parts and "://" not in path and "\0" not in path


def refuse_outside(root: str, path: str) -> None:
    """Raise LedOutside where a path, links in it followed, does not lead below a folder of this machine.

    For what a record or a seal names, before it is written, moved or removed: an output may be somebody else's, with
    links in it. The root itself may be a link, or lie behind one. The path's last name is not followed, since a link is
    removed and replaced as one.
    """
    if not is_local(root) or not is_local(path):
        if not path.startswith(f"{root.rstrip('/')}/") or not is_below(path[len(root.rstrip("/")) + 1 :]):
            raise LedOutside(f"{path} does not lie below {root}: remove the record that names it")
        return
    within, (folder, name) = os.path.realpath(open_filesystem(root)[1]), os.path.split(open_filesystem(path)[1])
    above = os.path.realpath(folder)
    if name in ("", ".", "..") or os.path.commonpath([within, above]) != within or os.path.join(above, name) == within:
        raise LedOutside(
            f"{path} leads out of {root}, to {above}: nothing is changed behind a link that a record names. Put the "
            "folder itself in the link's place, or link the whole output, if it is yours; else remove the link"
        )


def remove_below(root: str, path: str) -> None:
    """Remove what a record or a seal names below a folder, by its path from there; nothing where it is missing. Raises
    LedOutside."""
    if not is_below(path):
        raise LedOutside(f"{path!r} does not lie below {root}: remove the record that names it")
    whole = join(root, path)
    refuse_outside(root, whole)
    remove(whole)


def is_hidden(path: str) -> bool:
    """Does a part of this relative path begin with `.` or `_`? Spark, Delta, macOS and this module keep such files
    beside the data."""
    return any(part.startswith((".", "_")) for part in path.split("/"))


def is_unfinished(path: str) -> bool:
    """Is it what a writer of ours has not finished, or one that was killed has left?"""
    return any(_UNFINISHED.fullmatch(part) for part in path.split("/"))


def left_unfinished(folder: str) -> list[FileInfo]:
    """Files below a folder that writers of ours have left which died: nobody has written them for a minute."""
    before = (time.time() - _SWEPT_AFTER) * 1e9
    return [info for info in list_files(folder) if is_unfinished(info.path) and info.modified < before]


# Finding


_WILD = re.compile(r"[*?[]")


class Beside:
    """Which folders hold one of some names that no pattern takes, such as `_delta_log`; and which were taken whole.

    `find` notes here what its listings show, hidden names included. So folders that it has listed are not asked once
    more, however many they are. Folders are spelled as the paths that `find` gives.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.whole: set[str] = set()
        """Folders of which all was taken that is not hidden."""
        self._holding: dict[str, set[str]] = {name: set() for name in names}
        self._listed: set[str] = set()
        self._trees: set[str] = set()
        self._query = ""

    def note(self, folder: str, below: Sequence[str], recursive: bool, query: str) -> None:
        """What a listing has shown: the paths below a folder."""
        (self._trees if recursive else self._listed).add(folder)
        self._query = query
        for path in below:
            for name in self.names:
                if name in path and name in (parts := path.split("/")):
                    above = "/".join(parts[: parts.index(name)])
                    self._holding[name].add(join(folder, above) if above else folder)

    def ask(self, folders: Sequence[str]) -> None:
        """Look into those of these folders that no listing has shown."""
        trees = Ancestors(self._trees)
        unknown = [f for f in dict.fromkeys(folders) if f not in self._listed and trees.nearest(f) is None]
        if not unknown:
            return
        self._listed.update(unknown)
        asked = [(name, folder) for folder in unknown for name in self.names]
        filesystem, first = open_filesystem(unknown[0] + self._query)  # once, since a store's client costs much
        above = first.removesuffix(_in_store(unknown[0])).rstrip("/")
        inner = [
            os.path.abspath(join(folder, name)) if is_local(folder) else f"{above}/{join(_in_store(folder), name)}"
            for name, folder in asked
        ]
        with suppress(OSError):  # folders above what was named need not be open to its reader
            infos = filesystem.get_file_info(inner)
            for (name, folder), info in zip(asked, infos, strict=True):
                if info.type != pafs.FileType.NotFound:
                    self._holding[name].add(folder)

    def holding(self, name: str) -> set[str]:
        """The folders seen to hold this name."""
        return self._holding[name]


def _in_store(uri: str) -> str:
    """What stands behind the bucket or server."""
    return uri.partition("://")[2].partition("/")[2]


class Ancestors:
    """Which of some folders a path lies in, in time that does not grow with how many they are."""

    def __init__(self, folders: Collection[str]) -> None:
        self._folders = folders
        self._known: dict[str, str | None] = {}

    def nearest(self, folder: str) -> str | None:
        """This folder, or the nearest above it, that is one of them."""
        if folder in self._folders:
            return folder
        if folder not in self._known:
            above = folder_of(folder)
            self._known[folder] = self.nearest(above) if above != folder else None
        return self._known[folder]


def folder_of(path: str) -> str:
    """The folder of a path as it is spelled; "" of a name alone; of a root, itself."""
    above, slash, _ = path.rpartition("/")
    if not slash:
        return ""
    return path if above.endswith(("/", ":")) else above or "/"


def find(patterns: Sequence[str], suffix: str, beside: Beside | None = None) -> list[FileInfo]:
    """Files that paths, folders or globs name, sorted by path, each once.

    A path is taken as it is. Of a folder, and of a folder that a glob matches, all files below it whose names end with
    `suffix` are taken. In a glob `*`, `?` and `[…]` stand for characters of one name and never for a `/`; `**` alone
    between two `/` stands for any number of folders, none included. `{a,b}` and `{00..99}` stand for each of what they
    name, and each must be there. A folder or file that is called so, with brackets or braces in its name, is itself.
    `~` before a local path is the home folder. No wildcard and no folder gives names that begin with `.` or `_`; a
    pattern that spells that first character does. All this holds on disks and on object stores.

    beside   is told what was listed
    Raises NoSuchFile for a pattern that names nothing, PatternError for one that can name nothing, StoreError for a URI
    of an unknown kind.
    """
    found: dict[str, FileInfo] = {}
    for pattern in patterns:
        for one in _alternatives(os.path.expanduser(pattern)):
            try:
                matched = _find_one(one, suffix, beside)
            except OSError as error:
                if is_local(one) or isinstance(error, I2EError):
                    raise
                raise stores.fault(error, one) from None
            if not matched:
                if lacking := no_bucket(one):
                    raise stores.fault(lacking, one)
                of = "" if one == pattern else f" of {pattern}"
                what = "a folder without a file that counts" if exists(one) else "no file matches"
                raise NoSuchFile(f"{one}{of}: {what}" + (f" (looked for *{suffix})" if suffix else ""))
            for info in matched:
                found[info.path] = info
    return [found[path] for path in sorted(found)]


def no_bucket(path: str) -> str:
    """That the bucket of this URI does not exist; empty where it does, or where nobody may ask for it."""
    if not (bucket := stores.bucket_of(path)):
        return ""
    filesystem, inner = open_filesystem(path)
    try:
        there = filesystem.get_file_info(inner.partition("/")[0]).type != pafs.FileType.NotFound
    except OSError:  # keys of a folder alone may not ask for its bucket
        return ""
    return "" if there else f"the bucket {bucket} does not exist"


_BRACES = re.compile(r"\{([^{}]*,[^{}]*|-?\d+\.\.-?\d+)\}")


def _alternatives(pattern: str) -> list[str]:
    """What a pattern with `{a,b}` or `{00..99}` stands for; a file or folder that has such a name is itself."""
    for braces in _BRACES.finditer(pattern):
        if exists(_up_to(pattern, braces.end())):
            continue
        parts = braces[1].split(",") if "," in braces[1] else _numbers(*braces[1].split(".."))
        before, after = pattern[: braces.start()], pattern[braces.end() :]
        return [one for part in parts for one in _alternatives(before + part + after)]
    return [pattern]


def _up_to(pattern: str, place: int) -> str:
    """The path to the end of the name that a place stands in."""
    end = pattern.find("/", place)
    return pattern if end < 0 else pattern[:end]


def _numbers(first: str, last: str) -> list[str]:
    """As a shell counts: from one to the other, with zeros before where one of them has some."""
    step = 1 if int(first) <= int(last) else -1
    padded = any(re.match(r"-?0\d", number) for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{n:0{width}d}" for n in range(int(first), int(last) + step, step)]


def _find_one(pattern: str, suffix: str, beside: Beside | None = None) -> list[FileInfo]:
    pattern, query = pattern.removeprefix("file://"), ""
    scheme, authority, rest = "", "", pattern
    if not is_local(pattern):
        # A store's options stand behind a `?`, which is no wildcard then.
        query = match.group() if (match := stores.QUERY.search(pattern)) else ""
        scheme, _, rest = pattern.removesuffix(query).partition("://")
        authority, slash, rest = rest.partition("/")
        scheme, rest = f"{scheme}://", slash + rest
    names = rest.split("/")

    def wild(n: int) -> bool:
        """A name in brackets that is there is itself."""
        leads_to = scheme + authority + "/".join(names[: n + 1]) + query
        return bool(_WILD.search(names[n])) and ("*" in names[n] or "?" in names[n] or not exists(leads_to))

    fixed = next(filter(wild, range(len(names))), len(names))
    base = "/".join(names[:fixed])
    said = scheme + authority + (base or ("/" if rest.startswith("/") and not scheme else ""))
    filesystem, inner = open_filesystem(said + query if said else ".")
    wanted = [name for name in names[fixed:] if name]

    def spelled(path: str) -> str:
        """As the user spells it: what stands before the wildcards stays as it is written."""
        below = path[len(inner.rstrip("/")) :].lstrip("/")
        return f"{said.rstrip('/')}/{below}" if said and below else said or below

    def named(info: pafs.FileInfo) -> FileInfo:
        return FileInfo(spelled(info.path) + query, info.size, info.mtime_ns or 0)

    def listing(folder: str, recursive: bool) -> list[pafs.FileInfo]:
        listed = _listing(filesystem, folder, recursive)
        if beside is not None:
            start = len(folder.rstrip("/")) + 1
            at = spelled(folder)
            beside.note(at.rstrip("/") or at, [i.path[start:] for i in listed], recursive, query)
        return listed

    found = []
    try:
        matched = _matched(filesystem, inner, wanted, listing)
    except re.error:
        raise PatternError(
            f"{pattern}: its brackets stand for no character: in [a-z] the first comes before the last, and an empty "
            "[] is none; a bracket that belongs to the name is written [[]"
        ) from None
    for info in matched:
        if info.type == pafs.FileType.File:
            found.append(named(info))
        elif info.type == pafs.FileType.Directory:
            start = len(info.path.rstrip("/")) + 1
            if beside is not None:
                beside.whole.add(spelled(info.path).rstrip("/") or spelled(info.path))
            found += [
                named(i)
                for i in listing(info.path, recursive=True)
                if i.type == pafs.FileType.File and i.path.endswith(suffix) and not is_hidden(i.path[start:])
            ]
    return found


def _matched(
    filesystem: pafs.FileSystem, base: str, names: Sequence[str], listing: Callable[[str, bool], list[pafs.FileInfo]]
) -> list[pafs.FileInfo]:
    """Files and folders below `base` that these names, some of them wildcards, lead to."""
    found: list[pafs.FileInfo] = [filesystem.get_file_info(base)]
    for n, name in enumerate(names):
        folders = [i.path.rstrip("/") for i in found if i.type == pafs.FileType.Directory]
        if name == "**":
            below = re.compile("".join(map(_expression, names[n:])))
            return [
                info
                for folder in folders
                for info in listing(folder or "/", True)
                if below.fullmatch(info.path[len(folder) :])
            ]
        if _WILD.search(name):
            here = re.compile(_expression(name))
            listed = [i for folder in folders for i in listing(folder or "/", False)]
            found = [i for i in listed if here.fullmatch(f"/{i.base_name}")]
        else:
            found = filesystem.get_file_info([f"{folder}/{name}" for folder in folders]) if folders else []
    return found


def _expression(name: str) -> str:
    """The regular expression of `/` and one name of a glob."""
    if name == "**":
        return r"(?:/(?![._])[^/]+)*"
    parts = ["/(?![._])" if _WILD.match(name) else "/"]
    for token in re.findall(r"\[!?\]?[^\]]*\]|.", name, re.DOTALL):
        if token == "*":
            parts.append("[^/]*")
        elif token == "?":
            parts.append("[^/]")
        elif len(token) > 1:
            inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", token[1:-1].removeprefix("!"))
            parts.append(f"(?!/)[{'^' if token[1] == '!' else ''}{inner}]")
        else:
            parts.append(re.escape(token))
    return "".join(parts)


def _listing(filesystem: pafs.FileSystem, folder: str, recursive: bool) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(folder, recursive=recursive, allow_not_found=True)
    infos = list(filesystem.get_file_info(selector))
    for info in infos:
        try:
            _ = info.path
        except UnicodeDecodeError as error:
            name = bytes(error.object)
            raise BadName(
                f"{folder}: the name of a file in it is no UTF-8 ({name!r}): rename it (`convmv -r -f latin1 -t "
                "utf8 --notest`), or move it out of the folder"
            ) from None
    return infos


# Reading


def patiently(work: Callable[[], T], path: str) -> T:
    """What `work` reads of a path, tried again where a store fails it. A file that is not there stays away, and a disk
    of this machine is asked once."""
    pauses = [] if is_local(path) else [_FIRST_PAUSE * 2**n for n in range(_TRIES - 1)]
    for pause in pauses:
        try:
            return work()
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning(f"{path}: {error}; asked again in {pause:g} s")
            time.sleep(pause)
    return work()


def read_bytes(path: str, most: int | None = None) -> bytes:
    """The content of a file, unpacked as its name says. Raises TooLarge where that has more bytes than `most`."""
    filesystem, inner = open_filesystem(path)
    with filesystem.open_input_stream(inner) as stream:
        if most is None:
            return bytes(stream.read())
        content = bytearray()
        while part := stream.read(_COPIED):
            content += part
            if len(content) > most:
                raise TooLarge(f"{path} holds more than {most:,} bytes")
        return bytes(content)


def read_json(path: str) -> Any:
    return parsed_json(read_bytes(path))


def parsed_json(content: bytes) -> Any:
    """Raises ValueError for what is no JSON, and for halves of a pair of surrogates, which no path or page can hold."""
    value = json.loads(content)
    if b"\\ud" in content.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def record(path: str, remedy: str) -> Any:
    """The JSON of one record. Raises RecordError, with the remedy, where it is not whole."""
    try:
        return parsed_json(read_bytes(path, _LARGEST_RECORD))
    except TooLarge as error:
        raise RecordError(f"{error}, and is no record: {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not a whole record ({error}): {remedy}") from None


def records(folder: str, remedy: str, broken: dict[str, str] | None = None) -> dict[str, Any]:
    """The records of a folder: the JSON of each NAME.json directly in it, by NAME, sorted; {} where it is missing.

    broken   gets what is wrong with records that are not whole, by NAME; None: such a record is an error

    Everything else that lies there is passed over: folders, other programs' files (`.DS_Store`), names that begin with
    `.` or `_`. What a writer of ours that died has left unfinished there is removed. Raises RecordError, with the
    remedy, for a record that is not whole.
    """
    filesystem, inner = open_filesystem(folder)
    names = []
    for info in _listing(filesystem, inner, recursive=False):
        if info.type != pafs.FileType.File:
            continue
        unfinished = _UNFINISHED.fullmatch(info.base_name)
        if unfinished and unfinished["name"].endswith(".json"):
            # Of a writer that is alive, it is seconds old at most.
            if info.mtime is not None and time.time() - info.mtime.timestamp() > _SWEPT_AFTER:
                with suppress(OSError):  # another reader was faster, or this one may not write here
                    filesystem.delete_file(info.path)
        elif info.base_name.endswith(".json") and not is_hidden(info.base_name):
            names.append(info.base_name)
    names.sort()
    with ThreadPoolExecutor(_SMALL_READS) as pool:
        read = list(pool.map(lambda name: _record_or_none(join(folder, name), remedy, broken), names))
    return {name.removesuffix(".json"): value for name, value in zip(names, read, strict=True) if value is not None}


def _record_or_none(path: str, remedy: str, broken: dict[str, str] | None) -> Any:
    """The record, or None where it was removed since it was listed, or is broken."""
    try:
        return record(path, remedy)
    except FileNotFoundError:
        return None
    except RecordError as error:
        if broken is None:
            raise
        broken[path.rpartition("/")[2].removesuffix(".json")] = str(error)
        return None


# Writing


_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}


def compression(path: str) -> str | None:
    """What a file of this name is compressed with; None: nothing that this module reads."""
    return _COMPRESSED.get(posixpath.splitext(path)[1].lower())


def _fresh_name(path: Path) -> Path:
    """Where something is written that will be `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Within the block a disk that takes no more names this file; pyarrow's errors, and those of a write, name none."""
    try:
        yield
    except OSError as error:
        if error.errno not in _TAKES_NO_MORE or error.filename is not None or isinstance(error, I2EError):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def fresh_file(path: str | Path) -> Iterator[Path]:
    """A local path to write to. At the end of the block the file takes the place of `path`, in one step.

    A reader sees the old file or the new one, never a part. After an error the old one stays, and nothing else.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = _fresh_name(target)
    try:
        with naming(target):
            yield fresh
            with fresh.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def fresh_folder(folder: str | Path, alone: bool = False) -> Iterator[Path]:
    """An empty local folder to fill. At the end of the block it takes the place of `folder`.

    After an error the old one stays, and nothing else. A folder that can be seen under its name is whole.
    alone   nobody else writes this folder now (the caller holds a lock): what killed writers left is removed first
    """
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    if alone:
        for entry in target.parent.iterdir():
            left = _UNFINISHED.fullmatch(entry.name)
            if left and left["name"] == target.name:
                shutil.rmtree(entry, ignore_errors=True)
    fresh = _fresh_name(target)
    fresh.mkdir()
    try:
        with naming(target):
            yield fresh
            put_in_place(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def put_in_place(fresh: Path, folder: Path) -> None:
    """Rename the whole local folder `fresh` to `folder`. An older `folder` is removed.

    A folder that is not empty cannot be replaced in one step: the old one is renamed first, so a reader that comes
    between these two renames finds no folder.
    """
    _sync_folder(fresh)
    old = _fresh_name(folder)
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a mounted object store has no folders to sync
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def fresh_stream(path: str) -> Iterator[IO[bytes]]:
    """A stream to a file that takes its name, whole, when the block has ended; its folder is made. After an error there
    is none."""
    filesystem, inner = open_filesystem(path)
    if is_local(path):
        with fresh_file(inner) as fresh, fresh.open("wb") as stream:
            yield stream
        return
    folder, _, name = inner.rpartition("/")
    filesystem.create_dir(folder, recursive=True)
    # A store shows a file when its writer has closed it; a file system shows it from the first byte on.
    renames = path.startswith(_RENAMING)
    written = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp" if renames else inner
    try:
        # pyarrow compresses what is called .gz; here the bytes are the caller's, as on a disk.
        with filesystem.open_output_stream(written, compression=None) as out:
            yield out
        if renames:
            filesystem.move(written, inner)
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(written)
        raise


def write_bytes(path: str, content: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part; its folder is made.

    It is compressed as its name says (.gz, .bz2, .zst, .lz4), and `read_bytes` reads it so.
    """
    filesystem, inner = open_filesystem(path)
    if is_local(path):
        with fresh_file(inner) as fresh, pa.output_stream(str(fresh), compression=compression(path)) as stream:
            stream.write(content)
        return
    filesystem.create_dir(posixpath.dirname(inner), recursive=True)
    with filesystem.open_output_stream(inner) as stream:
        stream.write(content)


def as_json(value: Any) -> bytes:
    """A record as `write_json` writes it."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def write_json(path: str, value: Any) -> None:
    write_bytes(path, as_json(value))


def write_table(path: str, table: pa.Table) -> None:
    """Write a small table as a Parquet file, as `write_bytes` does."""
    with fresh_stream(path) as stream:
        pq.write_table(table, stream, compression="zstd")


def write_batches(path: str, batches: Iterator[pa.RecordBatch]) -> None:
    """Write batches as a Parquet file, a row group each, as `write_bytes` does; one of them is held at a time."""
    first = next(batches)
    with fresh_stream(path) as stream, pq.ParquetWriter(stream, first.schema, compression="zstd") as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)


def create_json(path: str, value: Any) -> None:
    """Write a file that must not be there yet, on a local disk in one step. Raises AlreadyThere where it is."""
    there = AlreadyThere(f"{path} is there already: another process has just written it")
    if not is_local(path):
        if exists(path):
            raise there
        write_json(path, value)
        return
    _, inner = open_filesystem(path)
    os.makedirs(posixpath.dirname(inner), exist_ok=True)
    try:
        with naming(path), open(inner, "xb") as file:
            file.write(as_json(value))
    except FileExistsError:
        raise there from None


def overwrite_json(path: str, value: Any) -> None:
    """Write a small record over one that is there. On a local disk a file that was removed is not made again, nor its
    folder, whenever that happens: FileNotFoundError; a reader may see some bytes of the old record and some of the new.
    """
    if not is_local(path):
        write_json(path, value)
        return
    _, inner = open_filesystem(path)
    with naming(path), open(inner, "r+b", buffering=0) as file:
        # Blanks after a record mean nothing, so no moment shows its half.
        file.write(as_json(value).ljust(os.fstat(file.fileno()).st_size))


def make_folder(path: str) -> None:
    filesystem, inner = open_filesystem(path)
    with naming(path):
        filesystem.create_dir(inner, recursive=True)


def remove(path: str) -> None:
    """Remove a file or folder; nothing where it is missing."""
    filesystem, inner = open_filesystem(path)
    kind = filesystem.get_file_info(inner).type
    if kind == pafs.FileType.Directory:
        filesystem.delete_dir(inner)
    elif kind == pafs.FileType.File:
        filesystem.delete_file(inner)


def move(source: str, target: str) -> None:
    """Move a folder into place: one rename where the store has renames, file by file where it does not."""
    filesystem, inner = open_filesystem(source)
    _, into = open_filesystem(target)
    filesystem.create_dir(posixpath.dirname(into), recursive=True)
    if is_local(source) or source.startswith(_RENAMING):
        filesystem.move(inner, into)
        return
    for info in list_files(source):
        filesystem.copy_file(join(inner, info.path), join(into, info.path))
    filesystem.delete_dir(inner)


def move_file(source: str, target: str) -> None:
    """Move one file; its folder is made."""
    filesystem, inner = open_filesystem(source)
    _, into = open_filesystem(target)
    with naming(target):
        filesystem.create_dir(posixpath.dirname(into), recursive=True)
        filesystem.move(inner, into)


def copy(source: str, target: str) -> None:
    """Copy one file, of any size, so that it is seen when it is whole; its folder is made."""
    here, inner = open_filesystem(source)
    there, into = open_filesystem(target)
    if is_local(target) or target.startswith(_RENAMING):
        with here.open_input_stream(inner, compression=None) as stream, fresh_stream(target) as out:
            shutil.copyfileobj(stream, out, _COPIED)
        return
    there.create_dir(posixpath.dirname(into), recursive=True)
    pafs.copy_files(inner, into, source_filesystem=here, destination_filesystem=there)


def fingerprint(path: str) -> str:
    """32 hex characters that name a file's content; of a folder, its files' names and contents.

    Files up to 64 MB are hashed whole. Of a larger file its size is hashed, both ends and three windows between them,
    so that a terabyte costs five requests. A Parquet file's end is its footer, which holds the size and statistics of
    every column chunk. Raises NoSuchFile.
    """
    filesystem, inner = open_filesystem(path)
    info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise NoSuchFile(f"{path}: no such file or folder")
    digest = hashlib.blake2b(digest_size=16)
    if info.type == pafs.FileType.Directory:
        for entry in list_files(path):
            digest.update(f"{entry.path}\0{fingerprint(join(path, entry.path))}\0".encode())
        return digest.hexdigest()
    digest.update(str(info.size).encode())
    with filesystem.open_input_file(inner) as stream:
        if info.size <= _WHOLE:
            while part := stream.read(_READ):  # many files are hashed side by side
                digest.update(part)
        else:
            step = (info.size - _WINDOW) // _WINDOWS
            for window in range(_WINDOWS + 1):
                digest.update(stream.read_at(_WINDOW, window * step if window < _WINDOWS else info.size - _WINDOW))
    return digest.hexdigest()
