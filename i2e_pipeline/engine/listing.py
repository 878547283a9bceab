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
from i2e_pipeline.engine.tables import Tables

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
