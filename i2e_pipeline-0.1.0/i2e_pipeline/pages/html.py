"""HTML: how all pages are rendered from templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape

from i2e_pipeline.pages import palette


def environment(package: str, **filters: Callable[..., Any]) -> Environment:
    """The templates of a package, and those of this one that all pages include; what is filled in is escaped."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("i2e_pipeline.pages")]),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters)
    made.globals.update(day=palette.variables(palette.DAY), night=palette.variables(palette.NIGHT))
    return made
