"""The commit records of a published dataset: which files of which stage belong to it."""

from __future__ import annotations

from i2e_pipeline.dataset.published import NotPublished, manifest_of
from i2e_pipeline.engine.tables import Commit, Tables

__all__ = ["NotPublished", "published"]


def published(tables: Tables) -> dict[str, list[Commit]]:
    """Commits of the published dataset, by the table that they wrote; raises NotPublished where it is not whole."""
    units = manifest_of(tables.path("i2e"))["units"]
    whole = list(tables.commits_of("i2e/entities").values())
    return {
        "i2e/images": [c for u, c in tables.commits_of("i2e/images").items() if u in units],
        **dict.fromkeys(
            ("i2e/entities", "i2e/statistics/entities", "i2e/statistics/buckets", "i2e/statistics/funnel"), whole
        ),
    }
