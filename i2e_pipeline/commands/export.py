"""Copies a published dataset as plain Parquet, for readers that know no Delta."""

from __future__ import annotations

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.dataset.commits import published
from i2e_pipeline.engine.tables import Tables

_MARK = "_exported"


class ExportError(I2EError, RuntimeError):
    """An export that would mix or destroy data; the message says the way out."""


def export(tables: Tables, folder: str) -> int:
    """Copy the files that are committed, and manifest and card; returns the number of images.

    What an earlier export left in the folder is replaced. Raises NotPublished where there is nothing to copy,
    ExportError where the folder is the output itself or holds an i2e that no export wrote.
    """
    commits = published(tables)
    target = files.join(folder, "i2e")
    if files.open_filesystem(folder) == files.open_filesystem(tables.root):
        raise ExportError(f"--to {folder} is the output itself: name another folder")
    if files.exists(target) and not files.exists(files.join(target, _MARK)):
        raise ExportError(f"{target} is there and no export wrote it: remove it, or name another folder")
    files.remove(files.join(target, "manifest.json"))
    files.remove(target)
    files.write_bytes(files.join(target, _MARK), b"")
    images = 0
    for name, made in commits.items():
        for commit in made:
            for file in commit.files.get(name, []):
                files.copy(tables.path(name, file.path), files.join(folder, name, file.path))
                images += file.rows if name == "i2e/images" else 0
    for name in ("README.md", "croissant.json", "manifest.json"):
        files.write_bytes(files.join(folder, "i2e", name), files.read_bytes(tables.path("i2e", name)))
    return images
