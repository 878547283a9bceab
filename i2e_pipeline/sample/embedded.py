"""The config of the embedded sample. Its inputs are composed where they are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from i2e_pipeline.core import digests, files
from i2e_pipeline.core.config import Config, ConfigError, from_tree, merge
from i2e_pipeline.core.files import at_home
from i2e_pipeline.core.packaged import folder
from i2e_pipeline.core.settings import settled
from i2e_pipeline.engine import seal
from i2e_pipeline.sample.compose import compose, mark
from i2e_pipeline.sample.gpr import compose_gpr

log = logging.getLogger(__name__)

_HERE = folder(__package__)
_INPUT = "input"


def composed(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The sample's settings with overrides; composes <output>/input first. Raises ConfigError."""
    filled = tree(overrides)
    place = Path(filled["output"]) / _INPUT
    made = compose(place)
    log.info("%-15s %s %s", "sample", "composed in" if made else "is in", place)
    return filled


def composer(output: str) -> Callable[[], None] | None:
    """What composes the input of an output anew, in the place of a damaged one. None: its input is not the sample's, as
    its seal says."""
    place = f"{_INPUT}/manifest.json"
    if not files.is_local(output):
        return None
    try:
        known = seal.read(output).get(place)
    except seal.SealError:
        return None
    if known is None or known.digest != digests.of_bytes(mark()):
        return None

    def again() -> None:
        files.remove(files.join(output, _INPUT))
        compose(Path(output) / _INPUT)

    return again


def evaluation(overrides: Sequence[str] = ()) -> Config:
    """The sample's config with two encoders and a data set to measure, where the overrides name none.

    The encoders are the trained model and the same architecture untrained. The trained one is what `i2e train`
    exported, else the shipped scorer. The data set is a small GPR1200 of the sample's world, composed here of draws
    that no training uses; the sample's own dataset would not do, since it holds images that were trained on.
    """
    filled = tree(overrides)
    output = Path(filled["output"])
    exported = output / "train" / "multi_task" / "export" / "open_clip"
    trained = exported if (exported / "open_clip_config.json").is_file() else _HERE / "models" / "scorer"
    wanted = filled.setdefault("evaluate", {})
    wanted.setdefault("models", [f"untrained=local-dir:{trained}@random", f"trained=local-dir:{trained}"])
    if "data" not in wanted:
        wanted["data"] = {"mini_gpr": str(output / "gpr")}
        if compose_gpr(output / "gpr"):
            log.info("%-15s composed in %s", "mini_gpr", output / "gpr")
    return from_tree(filled, "the embedded sample", overrides)


def tree(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of sample.yaml with overrides, its placeholders filled in; composes nothing."""
    text = (_HERE / "sample.yaml").read_text(encoding="utf-8")
    # What is written behind --set becomes text here, so that placeholders can be filled in.
    merged = settled(merge(yaml.safe_load(text), overrides), Config)
    output = merged["output"]
    if not isinstance(output, str):
        raise ConfigError(f"output: {output!r} is not allowed (a folder), from --set")
    filled: dict[str, Any] = _fill(merged | {"output": at_home(output)}, at_home(output))
    return filled


def _fill(value: Any, output: str) -> Any:
    if isinstance(value, dict):
        return {k: _fill(v, output) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(v, output) for v in value]
    if isinstance(value, str):
        return value.replace("{output}", output).replace("{package}", str(_HERE))
    return value
