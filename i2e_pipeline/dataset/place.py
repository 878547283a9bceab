"""Where a published dataset lies that somebody names by a folder, and whether its run's tables lie beside it."""

from __future__ import annotations

from dataclasses import dataclass

from i2e_pipeline.core import files
from i2e_pipeline.core.secrets import hide
from i2e_pipeline.dataset.published import NotPublished


@dataclass(frozen=True)
class Place:
    dataset: str
    output: str | None
    """The folder of the run's tables; None: the dataset lies by itself."""

    @classmethod
    def of(cls, folder: str) -> Place:
        """Of an output, or of a dataset's own folder. Raises NotPublished."""
        folder = folder.rstrip("/") or "/"
        inside = files.join(folder, "i2e")
        if files.exists(files.join(inside, "manifest.json")):
            return cls(inside, folder if _has_run(folder) else None)
        if files.exists(files.join(folder, "manifest.json")):
            above = files.folder_of(folder)
            return cls(folder, above if folder.endswith("/i2e") and _has_run(above) else None)
        raise NotPublished(
            f"{hide(folder)} holds no published dataset: neither manifest.json nor i2e/manifest.json is there. "
            "`i2e run` makes one; give the output's folder, or the dataset's"
        )


def _has_run(folder: str) -> bool:
    return files.exists(files.join(folder, "_commits"))
