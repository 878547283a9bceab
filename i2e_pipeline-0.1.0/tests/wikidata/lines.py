"""Dump lines from keyword arguments."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa


def line(number: int = 1, label: str | None = "test item", **parts: Any) -> bytes:
    """A dump line of Q<number>; `parts` replace or add keys."""
    labels = {"en": {"language": "en", "value": label}} if label is not None else {}
    item = {"type": "item", "id": f"Q{number}", "labels": labels, "descriptions": {}, "aliases": {}, "claims": {}}
    return json.dumps({**item, "sitelinks": {}, **parts}).encode() + b","


def aliases(*names: str, language: str = "en") -> dict[str, Any]:
    return {language: [{"language": language, "value": n} for n in names]}


def statement(value: Any = None, rank: str = "normal", snaktype: str = "value") -> dict[str, Any]:
    snak: dict[str, Any] = {"snaktype": snaktype, "property": "P0"}
    if value is not None:
        snak["datavalue"] = {"value": value, "type": "any"}
    return {"mainsnak": snak, "type": "statement", "rank": rank}


def instance_of(*classes: int) -> dict[str, Any]:
    return {"P31": [statement({"entity-type": "item", "numeric-id": c, "id": f"Q{c}"}) for c in classes]}


def batch(*lines: bytes) -> pa.RecordBatch:
    return pa.record_batch([pa.array(lines, pa.binary())], ["value"])
