"""The commit records of a published dataset: which files of which stage belong to it."""

from __future__ import annotations

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.tables import Commit, Tables


class NotPublished(I2EError, FileNotFoundError):
    """There is no whole dataset to read."""


def published(tables: Tables) -> dict[str, list[Commit]]:
    """Commits of the published dataset, by the table that they wrote; raises NotPublished where it is not whole."""
    place = tables.path("i2e", "manifest.json")
    if not files.exists(place):
        raise NotPublished(
            f"{tables.path('i2e')} has no manifest.json: nothing was published there, or publishing was cut off. "
            "`i2e run` ends what was begun, or jobs/build_dataset.py"
        )
    units = files.read_json(place)["units"]
    whole = list(tables.commits_of("i2e/entities").values())
    return {
        "i2e/images": [c for u, c in tables.commits_of("i2e/images").items() if u in units],
        **dict.fromkeys(
            ("i2e/entities", "i2e/statistics/entities", "i2e/statistics/buckets", "i2e/statistics/funnel"), whole
        ),
    }
