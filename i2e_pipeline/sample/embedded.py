"""The config of the embedded sample, its inputs composed where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from i2e_pipeline.config import Config, ConfigError, from_tree, merge
from i2e_pipeline.sample.compose import compose

_HERE = Path(__file__).parent


def config(overrides: Sequence[str] = (), say: Callable[[str], None] = lambda line: None) -> Config:
    """The sample's config with overrides; composes <output>/input first. Raises ConfigError."""
    filled = tree(overrides)
    folder = Path(filled["output"]) / "input"
    made = compose(folder)
    say(f"{'sample':<15} {'composed in' if made else 'is in'} {folder}")
    return from_tree(filled, "the embedded sample", overrides)


def tree(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of sample.yaml with overrides, its placeholders filled in; composes nothing."""
    text = (_HERE / "sample.yaml").read_text(encoding="utf-8")
    settings = merge(yaml.safe_load(text), overrides)
    output = settings["output"]
    if not isinstance(output, str):
        raise ConfigError(f"output: {output!r} is not allowed (a folder), from --set")
    filled: dict[str, Any] = _fill(settings, output)
    return filled


def _fill(value: Any, output: str) -> Any:
    if isinstance(value, dict):
        return {k: _fill(v, output) for k, v in value.items()}
    if isinstance(value, str):
        return value.replace("{output}", output).replace("{package}", str(_HERE))
    return value
