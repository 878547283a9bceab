"""The config of the embedded sample, its inputs composed where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from i2e_pipeline.config import Config, ConfigError, from_tree, merge
from i2e_pipeline.sample.compose import compose

_HERE = Path(__file__).parent


def config(overrides: Sequence[str] = (), say: Callable[[str], None] = lambda line: None) -> Config:
    """The sample's config with overrides; composes <output>/input first. Raises ConfigError."""
    text = (_HERE / "sample.yaml").read_text(encoding="utf-8")
    tree = merge(yaml.safe_load(text), overrides)
    output = tree["output"]
    if not isinstance(output, str):
        raise ConfigError(f"output: {output!r} is not allowed (a folder), from --set")
    tree = _fill(tree, output)
    made = compose(Path(output) / "input")
    say(f"{'sample':<15} {'composed in' if made else 'is in'} {output}/input")
    return from_tree(tree, "the embedded sample")


def _fill(value, output: str):  # type: ignore[no-untyped-def]
    if isinstance(value, dict):
        return {k: _fill(v, output) for k, v in value.items()}
    if isinstance(value, str):
        return value.replace("{output}", output).replace("{package}", str(_HERE))
    return value
