"""The seal of an output: what names the content of its files beside the tables, so that damage is found and mended.

    <output>/_seal         of each of them its size and digest; of records their text, too. Written when a command ends
    <output>/_unsealed     lies there while a command writes the output, and after one that was killed

Commit records name the files of tables with their digests. Of everything else the seal does: records (commits, units,
settings) and products (manifest, card, report, gazetteer, Delta's logs). Products can be made again. Records cannot
always: a byte of a journal that went bad would cost the work on all its units, and a unit that somebody forgot would
come back. So the seal holds them a second time.

What was changed since the last seal, and not by a command that holds the output, keeps its old digest: a run after the
damage does not take it for its own work. No clock decides which it is, since those of machines and stores go back:
`_unsealed` names what lay there, other than it was sealed, when the command began.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from i2e_pipeline.core import digests, files, settings
from i2e_pipeline.core.config import is_ours
from i2e_pipeline.core.errors import I2EError

log = logging.getLogger(__name__)

FILE, OPEN = "_seal", "_unsealed"
CONFIG = "config.yaml"
RECORDS = ("_commits/", "units/", "forgotten_units/", "_storage.json", "_reported.json", CONFIG)
"""Folders and files whose text the seal holds, too."""
REPORT = ("report.html", "report_entities/", "quality.json", "judged.parquet")
CARD = ("i2e/manifest.json", "i2e/README.md", "i2e/croissant.json")
LIST = f"i2e/{digests.LIST}"
"""Written when all else is sealed (engine/digest_list.py)."""
_LARGE = ("units/index/",)
"""Below the records, and not held a second time: as long as the input has rows."""
_READ_AT_ONCE = 32
_MOST = 4 << 30
"""Bytes that a seal may hold: some ten million files, or the records of a hundred thousand units."""


_SMALL, _PACKED = 64 << 20, 50
"""Bytes that any seal may hold, and those of each of its bytes: digests and records are packed to a tenth at best."""


class SealError(I2EError, ValueError):
    """A seal that cannot be read; the message names it and the remedy."""


@dataclass(frozen=True)
class Sealed:
    """A file as it was when it was sealed."""

    size: int
    modified: int
    """nanoseconds since 1970, as the store says"""
    digest: str
    text: str | None = None
    """Its content, where it is a record."""


def read(root: str) -> dict[str, Sealed]:
    """The sealed files by their paths, relative to the output; {} where nothing was sealed. Raises SealError."""
    path = files.join(root, FILE)
    if not files.exists(path):
        return {}
    name, _, packed = files.read_bytes(path).partition(b"\n")
    try:
        if digests.of_bytes(packed) != name.decode("ascii", "replace"):
            raise ValueError("its content has another digest")
        bounded = zlib.decompressobj()
        most = min(_MOST, _SMALL + _PACKED * len(packed))
        unpacked = bounded.decompress(packed, most)
        if bounded.unconsumed_tail:
            raise ValueError(f"it holds more than {most:,} bytes")
        tree = json.loads(unpacked)
        sealed = {path: Sealed(**entry) for path, entry in tree.items()}
        # What it names is written and removed: an output may be somebody else's.
        if outside := [path for path in sealed if not files.is_below(path)]:
            raise ValueError(f"it names what is not below the output ({outside[0]!r})")
    except (ValueError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise SealError(f"{path} is not what was written ({error}): `i2e repair` seals the output anew") from None
    return sealed


def _write(root: str, sealed: Mapping[str, Sealed]) -> None:
    tree = {path: {k: v for k, v in vars(one).items() if v is not None} for path, one in sorted(sealed.items())}
    packed = zlib.compress(json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode())
    files.write_bytes(files.join(root, FILE), digests.of_bytes(packed).encode() + b"\n" + packed)


Others = Mapping[str, tuple[int, int]]
"""Size and time of change, by path, of what lay there other than it was sealed; _GONE where it did not."""
_GONE = (-1, -1)


def opened(root: str) -> Others | None:
    """What lay there other than it was sealed when the command began that writes the output, or was killed. None: the
    seal holds."""
    path = files.join(root, OPEN)
    if not files.exists(path):
        return None
    try:
        return {name: (int(size), int(modified)) for name, (size, modified) in files.read_json(path)["others"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):  # damaged, or of before
        return {}


def _others(root: str, further: Collection[str]) -> dict[str, tuple[int, int]]:
    try:
        known = read(root)
    except SealError:
        return {}
    # Logs of tables that no stage writes any more are looked for by nobody.
    places = _places(further)
    known = {path: one for path, one in known.items() if any(is_of(path, place) for place in places)}
    found = {i.path: i for i in lying(root, further)} if known else {}
    others = {p: (i.size, i.modified) for p, i in found.items() if p not in known or not _same(i, known[p])}
    return others | dict.fromkeys(known.keys() - found.keys(), _GONE)


@contextmanager
def unsealed(root: str, further: Collection[str], last: Callable[[], object] = lambda: None) -> Iterator[None]:
    """For a command that writes the output, which must be locked. At the end of the block, however it ends, the output
    is sealed.

    further   folders beside RECORDS, REPORT and CARD whose files are sealed, each with a `/` at its end
    last      writes LIST by what is sealed
    """
    if opened(root) is None:
        files.write_json(files.join(root, OPEN), {"others": _others(root, further)})
    try:
        yield
    except BaseException:
        try:
            seal(root, further, last)
        except Exception as error:  # what ended the block is what is said
            log.debug("%s is not sealed: %s", root, error)
        raise
    seal(root, further, last)


def seal(root: str, further: Collection[str], last: Callable[[], object] = lambda: None) -> None:
    """Seal what lies there now, and take the mark of a command that writes away. `last` as of `unsealed`."""
    others = opened(root)
    try:
        before = read(root)
    except SealError as error:
        log.warning("%s", error)
        before = {}
    now = dict(_sealed(root, lying(root, further), before, others))
    # Records that are gone are no news to who has worked without them.
    gone = [path for path, was in (others or {}).items() if was == _GONE and not is_record(path)]
    now |= {path: before[path] for path in gone if path in before and path not in now}
    if now != before or not before:
        _write(root, now)
    last()
    listed = files.info(files.join(root, LIST))
    entry = _entry(root, replace(listed, path=LIST)) if listed is not None else None
    whole = {path: one for path, one in now.items() if path != LIST} | (dict([entry]) if entry else {})
    if whole != now:
        _write(root, whole)
    files.remove(files.join(root, OPEN))


def renew(root: str, *paths: str) -> None:
    """Seal these files, which a command has just written beside a run's, where the output is sealed."""
    try:
        before = read(root)
    except SealError:
        return
    if not before or opened(root) is not None:  # whoever writes seals them
        return
    found = [i for i in lying(root, ()) if any(is_of(i.path, place) for place in paths)]
    left = {path: one for path, one in before.items() if not any(is_of(path, place) for place in paths)}
    _write(root, left | dict(_sealed(root, found, {}, None)))


def forget(root: str, paths: Iterable[str]) -> None:
    """Take files out of the seal that are about to be made again."""
    gone = set(paths)
    if gone:
        _write(root, {path: one for path, one in read(root).items() if path not in gone})


def lying(root: str, further: Collection[str]) -> Iterator[files.FileInfo]:
    """The files of an output that are sealed, as they lie there."""
    for place in _places(further):
        if place.endswith("/"):
            folder = place.rstrip("/")
            for info in files.list_files(files.join(root, folder)):
                if not files.is_unfinished(info.path):
                    yield replace(info, path=files.join(folder, info.path))
        elif (one := files.info(files.join(root, place))) is not None:
            yield replace(one, path=place)


def _places(further: Collection[str]) -> list[str]:
    return list(dict.fromkeys((*RECORDS, *CARD, LIST, *REPORT, *further)))


def _sealed(
    root: str, found: Iterable[files.FileInfo], before: Mapping[str, Sealed], others: Others | None
) -> Iterator[tuple[str, Sealed]]:
    """Each file with its entry. One that is as it was when it was sealed, or when the command began, keeps what was
    known of it; a record that nobody knew then stays unknown.

    others   None: no command is known to have written since, but files that are new
    """
    to_read = []
    for info in found:
        known = before.get(info.path)
        if known is not None and (others is None or not written_since(info.path, info, known, others)):
            yield info.path, known
        elif known is not None or not (before and is_record(info.path) and info.path in (others or {})):
            to_read.append(info)
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for entry in pool.map(lambda info: _entry(root, info), to_read):
            if entry is not None:
                yield entry


def written_since(path: str, info: files.FileInfo | None, known: Sealed, others: Others) -> bool:
    """Has the command that began when `others` lay there written this file, or removed it (`info` None)?"""
    if info is None:
        return others.get(path) != _GONE
    return not _same(info, known) and others.get(path) != (info.size, info.modified)


def _same(info: files.FileInfo, known: Sealed) -> bool:
    return (info.size, info.modified) == (known.size, known.modified)


def _entry(root: str, info: files.FileInfo) -> tuple[str, Sealed] | None:
    path = files.join(root, info.path)
    try:
        if not is_record(info.path):
            return info.path, Sealed(info.size, info.modified, digests.of_file(path))
        content = files.read_bytes(path)
        if info.path == CONFIG and not is_ours(content):
            return None
        return info.path, Sealed(len(content), info.modified, digests.of_bytes(content), content.decode())
    except FileNotFoundError:  # removed since it was listed
        return None


def is_record(path: str) -> bool:
    """Whether the seal holds its text."""
    of = any(is_of(path, place) for place in RECORDS)
    return of and not any(is_of(path, place) for place in _LARGE)


def is_of(path: str, place: str) -> bool:
    """Whether a place of RECORDS, CARD, REPORT holds a file."""
    return path.startswith(place) if place.endswith("/") else path == place


def settings_of(root: str) -> dict[str, object]:
    """The settings of the last command that wrote an output, as its own config.yaml or the seal says them, whichever is
    what was written. Raises SealError where there are none."""
    path = files.join(root, CONFIG)
    content = files.read_bytes(path) if files.exists(path) else b""
    try:
        known = read(root).get(CONFIG)
    except SealError:
        known = None
    if known is not None and known.text is not None and digests.of_bytes(content) != known.digest:
        renewed = opened(root) is not None and is_ours(content)  # by a command that was cut off
        content = content if renewed else known.text.encode()
    try:
        tree = settings.parsed(content, path)
    except settings.SettingsError as error:
        raise SealError(f"{error}: name the config of the output, `--config FILE`") from None
    if not tree or not is_ours(content):
        raise SealError(f"{path} holds no settings of a run: name the config of the output, `--config FILE`")
    return tree


def restore(root: str, paths: Sequence[str]) -> None:
    """Write records again as they were sealed."""
    known = read(root)
    again: dict[str, Sealed] = {}
    for path in paths:
        one = known[path]
        assert one.text is not None, path
        assert is_record(path), path
        files.refuse_outside(root, files.join(root, path))
        files.write_bytes(files.join(root, path), one.text.encode())
        written = files.info(files.join(root, path))
        again[path] = replace(one, modified=written.modified if written else one.modified)
    _write(root, known | again)
