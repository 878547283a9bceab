"""The commit records of a published dataset: which files of which stage belong to it."""

from __future__ import annotations

from i2e_pipeline.dataset.published import NotPublished, manifest_of
from i2e_pipeline.engine.tables import Commit, Tables

__all__ = ["NotPublished", "published"]


def published(tables: Tables) -> dict[str, list[Commit]]:
    """Commits of the published dataset by stage; raises NotPublished where it is not whole."""
    units = manifest_of(tables.path("i2e"))["units"]
    return {
        "publish": [c for u, c in tables.commits("publish").items() if u in units],
        "finish": list(tables.commits("finish").values()),
    }
