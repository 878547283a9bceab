"""The digests of a published dataset, beside its files: <output>/i2e/b2sums.txt.

Reads   the commit records of i2e/*, the manifest's units, the seal (engine/seal.py)
Writes  the list, after each command that writes the output

A copy of the dataset has neither records nor a seal. What it has is this list, which `b2sum -l 128 -c b2sums.txt` and
`i2e verify` compare with what lies there. It names what counts: files of tables, card, croissant and manifest. Delta's
logs are not among them, since other programs go on writing them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from i2e_pipeline.core import digests, files
from i2e_pipeline.engine import seal
from i2e_pipeline.engine.tables import Tables

log = logging.getLogger(__name__)

FOLDER = "i2e"


@contextmanager
def renewed(tables: Tables) -> Iterator[None]:
    """At the end of the block, which seals the output, the list is what it should be."""
    try:
        yield
    except BaseException:
        try:
            _renew(tables)
        except Exception as error:  # what ended the block is what is said
            log.debug("%s is not listed: %s", tables.root, error)
        raise
    _renew(tables)


def _renew(tables: Tables) -> None:
    path = tables.path(seal.LIST)
    wanted = content(tables)
    there = files.read_bytes(path) if files.exists(path) else None
    if wanted is None:
        files.remove(path)
        return
    if wanted != there:
        files.write_bytes(path, wanted)
    known = seal.read(tables.root).get(seal.LIST)
    if known is None or known.digest != digests.of_bytes(wanted):
        seal.renew(tables.root, seal.LIST)


def content(tables: Tables) -> bytes | None:
    """What the list should be. None where there is no whole dataset, or not all of its files have a digest: those that
    an earlier version wrote have none."""
    try:
        units = files.read_json(tables.path(FOLDER, "manifest.json"))["units"].keys()
        sealed = seal.read(tables.root)
        found = {path: sealed[path].digest for path in seal.CARD}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    for table in tables.catalogue.tables:
        if not table.startswith(f"{FOLDER}/"):
            continue
        for unit, commit in tables.commits_of(table).items():
            if table == f"{FOLDER}/images" and unit not in units:
                continue
            found |= {files.join(table, file.path): file.digest for file in commit.files.get(table, [])}
    if not all(found.values()):
        return None
    return digests.listing({path.removeprefix(f"{FOLDER}/"): digest for path, digest in found.items()})
