"""The digests of a published dataset, beside its files: <output>/i2e/b2sums.txt.

Reads   the commit records of i2e/*, the manifest's units, the seal (engine/seal.py)
Writes  the list, after each command that writes the output

A copy of the dataset has neither records nor a seal. What it has is this list, which `b2sum -l 128 -c b2sums.txt` and
`i2e verify` compare with what lies there. It names what counts: files of tables, card, croissant and manifest. Delta's
logs are not among them, since other programs go on writing them.
"""

from __future__ import annotations

from i2e_pipeline.core import digests, files
from i2e_pipeline.engine import seal
from i2e_pipeline.engine.tables import WHOLE, Tables

FOLDER = "i2e"


def renew(tables: Tables) -> None:
    """Let the list be what it should be, by what has just been sealed."""
    path = tables.path(seal.LIST)
    wanted = content(tables)
    if wanted is None:
        files.remove(path)
    elif not files.exists(path) or files.read_bytes(path) != wanted:
        files.write_bytes(path, wanted)


def content(tables: Tables) -> bytes | None:
    """What the list should be. None where there is no whole dataset, or not all of its files have a digest: those that
    an earlier version wrote have none."""
    try:
        units = files.read_json(tables.path(FOLDER, "manifest.json"))["units"].keys()
        sealed = seal.read(tables.root)
        found = {path: sealed[path].digest for path in seal.CARD}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    # A stage's records are read once, however many of the tables it writes.
    writers = {stage for table, stage in tables.catalogue.writers.items() if table.startswith(f"{FOLDER}/")}
    for stage in sorted(writers):
        for unit, commit in tables.commits(stage).items():
            if unit == WHOLE or unit in units:
                found |= {files.join(t, f.path): f.digest for t, made in commit.files.items() for f in made}
    found = {path: digest for path, digest in found.items() if path.startswith(f"{FOLDER}/")}
    if not all(found.values()):
        return None
    return digests.listing({path.removeprefix(f"{FOLDER}/"): digest for path, digest in found.items()})
