"""Files wherever they lie: a local path, or a URI that pyarrow.fs knows (s3://, gs://, hdfs://, abfs://)."""

from __future__ import annotations

import glob as local_glob
import hashlib
import json
import os
import posixpath
import shutil
import uuid
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

_WHOLE = 64 << 20
_WINDOW = 64 << 10
_WINDOWS = 4


@dataclass(frozen=True)
class FileInfo:
    path: str
    size: int
    """bytes"""
    modified: int
    """nanoseconds since 1970; 0 where the store does not say"""


def open_filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path within it."""
    if "://" in path:
        filesystem, inner = pafs.FileSystem.from_uri(path)
        return filesystem, inner
    return pafs.LocalFileSystem(), os.path.abspath(path)


def is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def join(base: str, *parts: str) -> str:
    return posixpath.join(base, *parts)


def exists(path: str) -> bool:
    filesystem, inner = open_filesystem(path)
    return bool(filesystem.get_file_info(inner).type != pafs.FileType.NotFound)


def list_files(folder: str) -> list[FileInfo]:
    """All files below a folder, sorted by path, relative to it; none where the folder is missing."""
    filesystem, inner = open_filesystem(folder)
    selector = pafs.FileSelector(inner, recursive=True, allow_not_found=True)
    found = [i for i in filesystem.get_file_info(selector) if i.type == pafs.FileType.File]
    return sorted(
        (FileInfo(posixpath.relpath(i.path, inner), i.size, i.mtime_ns or 0) for i in found), key=lambda i: i.path
    )


def find(patterns: tuple[str, ...], suffix: str) -> list[FileInfo]:
    """Files that paths, folders or globs name, sorted by path, each once. A pattern that names nothing raises."""
    found: dict[str, FileInfo] = {}
    for pattern in patterns:
        matched = _find_one(pattern, suffix)
        if not matched:
            raise FileNotFoundError(f"{pattern}: no file matches (looked for *{suffix})")
        for info in matched:
            found[info.path] = info
    return [found[path] for path in sorted(found)]


def _find_one(pattern: str, suffix: str) -> list[FileInfo]:
    if is_local(pattern):
        pattern = pattern.removeprefix("file://")
        names = local_glob.glob(pattern, recursive=True)
        names += [n for d in names if os.path.isdir(d) for n in local_glob.glob(f"{d}/**/*{suffix}", recursive=True)]
        files = [n for n in names if os.path.isfile(n)]
        return [FileInfo(n, os.path.getsize(n), os.stat(n).st_mtime_ns) for n in files]
    filesystem, inner = open_filesystem(pattern)
    scheme = pattern.split("://", 1)[0]
    fixed = inner.split("*", 1)[0].split("?", 1)[0].split("[", 1)[0]
    if fixed == inner:
        info = filesystem.get_file_info(inner)
        if info.type == pafs.FileType.File:
            return [FileInfo(pattern, info.size, info.mtime_ns or 0)]
        fixed, inner = inner, f"{inner.rstrip('/')}/*{suffix}"
    else:
        fixed = posixpath.dirname(fixed)
    selector = pafs.FileSelector(fixed, recursive=True, allow_not_found=True)
    return [
        FileInfo(f"{scheme}://{i.path}", i.size, i.mtime_ns or 0)
        for i in filesystem.get_file_info(selector)
        if i.type == pafs.FileType.File and fnmatch(i.path, inner)
    ]


def read_bytes(path: str) -> bytes:
    filesystem, inner = open_filesystem(path)
    with filesystem.open_input_stream(inner) as stream:
        return bytes(stream.read())


def read_json(path: str) -> Any:
    return json.loads(read_bytes(path))


def write_bytes(path: str, content: bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part."""
    filesystem, inner = open_filesystem(path)
    filesystem.create_dir(posixpath.dirname(inner), recursive=True)
    if not is_local(path):
        with filesystem.open_output_stream(inner) as stream:
            stream.write(content)
        return
    fresh = f"{inner}.{uuid.uuid4().hex}.tmp"
    with open(fresh, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, inner)


def put_in_place(fresh: Path, folder: Path) -> None:
    """Gives a local folder another's place; in between, for the time of a rename, there is none of that name."""
    old = fresh.with_name(f"{fresh.name}-old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def create_json(path: str, value: Any) -> None:
    """Write a file that must not be there yet; FileExistsError where it is. In one step on a local disk."""
    if not is_local(path):
        if exists(path):
            raise FileExistsError(path)
        write_json(path, value)
        return
    _, inner = open_filesystem(path)
    os.makedirs(posixpath.dirname(inner), exist_ok=True)
    with open(inner, "x", encoding="utf-8") as file:
        json.dump(value, file)


def make_folder(path: str) -> None:
    filesystem, inner = open_filesystem(path)
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
    if is_local(source) or source.startswith(("hdfs://", "viewfs://")):
        filesystem.move(inner, into)
        return
    for info in list_files(source):
        filesystem.copy_file(join(inner, info.path), join(into, info.path))
    filesystem.delete_dir(inner)


def move_file(source: str, target: str) -> None:
    """Move one file; its folder is made."""
    filesystem, inner = open_filesystem(source)
    _, into = open_filesystem(target)
    filesystem.create_dir(posixpath.dirname(into), recursive=True)
    filesystem.move(inner, into)


def copy(source: str, target: str) -> None:
    """Copy one file, of any size; its folder is made."""
    here, inner = open_filesystem(source)
    there, into = open_filesystem(target)
    there.create_dir(posixpath.dirname(into), recursive=True)
    pafs.copy_files(inner, into, source_filesystem=here, destination_filesystem=there)


def fingerprint(path: str) -> str:
    """32 hex characters that name a file's content; of a folder, its files' names and contents.

    Files up to 64 MB are hashed whole. Of larger ones the size, both ends and three windows between are, so that a
    terabyte costs five requests; a Parquet file's end is its footer, which holds the size and statistics
    of every column chunk.
    """
    filesystem, inner = open_filesystem(path)
    info = filesystem.get_file_info(inner)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(f"{path}: no such file or folder")
    digest = hashlib.blake2b(digest_size=16)
    if info.type == pafs.FileType.Directory:
        for entry in list_files(path):
            digest.update(f"{entry.path}\0{fingerprint(join(path, entry.path))}\0".encode())
        return digest.hexdigest()
    digest.update(str(info.size).encode())
    with filesystem.open_input_file(inner) as stream:
        if info.size <= _WHOLE:
            digest.update(stream.read())
        else:
            step = (info.size - _WINDOW) // _WINDOWS
            for window in range(_WINDOWS + 1):
                digest.update(stream.read_at(_WINDOW, window * step if window < _WINDOWS else info.size - _WINDOW))
    return digest.hexdigest()
