"""What a row of the input holds as its image."""

from __future__ import annotations

from dataclasses import dataclass

from i2e_pipeline.core.schemas import Reason


@dataclass(frozen=True)
class NoImage:
    """In the place of a row's stored image: why there is none to read."""

    reason: Reason
    detail: str


StoredImage = bytes | NoImage | None
"""The bytes as they are stored; None where the input says that there are none."""
