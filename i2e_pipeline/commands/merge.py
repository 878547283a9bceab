"""`i2e merge`: two outputs of one config become a third (engine/joining.py). `i2e run` then ends the dataset there.

Nothing of the input is read and Spark is not started: what each stage made of a unit is copied. Needs Spark only the
run that comes after: it decides over all images again (`select`) and writes those whose selection is not as it was.
"""

from __future__ import annotations

from typing import Any

from i2e_pipeline.core import files, settings
from i2e_pipeline.core.config import Config, ConfigError, keep
from i2e_pipeline.engine import joining
from i2e_pipeline.engine.joining import Joined, JoinError
from i2e_pipeline.engine.pipeline import STORAGE, Pipeline, stored_as
from i2e_pipeline.engine.tables import Tables

_CONFIG = "config.yaml"


def settings_of(first: str, second: str, to: str) -> dict[str, Any]:
    """The settings of the merged output where no config is named: what the first output keeps of its last run, with the
    input of both. Raises JoinError where it keeps none."""
    tree, theirs = _kept(first), _kept(second)
    if not tree:
        raise JoinError(f"{first} has no {_CONFIG}: name the config of both outputs, `i2e merge … --config FILE`")
    paths = [*_paths(tree), *_paths(theirs)]
    pairs = tree.get("pairs")
    of_first = pairs if isinstance(pairs, dict) else {}
    return {**tree, "output": to, "pairs": {**of_first, "path": list(dict.fromkeys(paths))}}


def _kept(output: str) -> dict[str, Any]:
    path = files.join(output, _CONFIG)
    if not files.exists(path):
        return {}
    try:
        return settings.settled(settings.read(path), Config)
    except settings.SettingsError as error:
        raise ConfigError(f"{error}: name a config, `--config FILE`") from None


def _paths(tree: dict[str, Any]) -> list[str]:
    pairs = tree.get("pairs")
    found = pairs.get("path", []) if isinstance(pairs, dict) else []
    return [found] if isinstance(found, str) else [path for path in found or () if isinstance(path, str)]


def merge(first: str, second: str, into: Pipeline) -> Joined:
    """Join two outputs into that of a pipeline. A merge that was cut off goes on where it was.

    Raises JoinError where they cannot be joined, StageError while a run writes one of the three.
    """
    outputs = [first, second, into.config.output]
    if len({files.open_filesystem(path)[1].rstrip("/") for path in outputs}) < len(outputs):
        raise JoinError(f"{', '.join(outputs)} are not three folders: name another one for the merged output")
    for path in (first, second):
        if not files.exists(files.join(path, "units")):
            raise JoinError(f"{path} is no output of a run: it has no folder `units`")
    a, b = (_opened(into, path) for path in (first, second))
    with a.exclusive(), b.exclusive(), into.exclusive(joining_in=True):
        joined = joining.join(into, a, b)
        keep(into.config, into.config.output)
        joining.finish(into)
    return joined


def _opened(into: Pipeline, output: str) -> Pipeline:
    """An output under the same config, stored in whichever format it is."""
    config = into.config
    found = stored_as(Tables(output, config.storage, None, into.tables.catalogue)) or config.storage.format
    if found not in ("parquet", "delta"):
        raise files.RecordError(
            f"{files.join(output, STORAGE)} names {found!r}, and tables are stored as parquet or delta: `i2e repair`"
        )
    own = config.storage.model_copy(update={"format": found})
    return Pipeline(config.model_copy(update={"output": output, "storage": own}), into.stages)
