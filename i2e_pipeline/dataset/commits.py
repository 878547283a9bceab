"""The commit records of a published dataset: which files of which stage belong to it."""

from __future__ import annotations

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.tables import Commit, Tables


class NotPublished(I2EError, FileNotFoundError):
    """There is no whole dataset to read."""


def published(tables: Tables) -> dict[str, list[Commit]]:
    """Commits of the published dataset by stage; raises NotPublished where it is not whole."""
    if not files.exists(tables.path("i2e", "manifest.json")):
        raise NotPublished(
            f"{tables.path('i2e')} has no manifest.json: nothing was published there, or publishing was cut off. "
            "`i2e run` ends what was begun, or jobs/build_dataset.py"
        )
    units = files.read_json(tables.path("i2e", "manifest.json"))["units"]
    return {
        "publish": [c for u, c in tables.commits("publish").items() if u in units],
        "finish": list(tables.commits("finish").values()),
    }
