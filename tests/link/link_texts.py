"""From texts to links in one process, without Spark: the kernels of extract and link over a lookup function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from i2e_pipeline.core.config import LinkConfig
from i2e_pipeline.extract.gazetteer import Gazetteer
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.recognizer import Recognizer
from i2e_pipeline.extract.text import clean_with_offsets
from i2e_pipeline.link.candidates import LINK_ROWS, candidates_of, keys_of
from i2e_pipeline.link.context import Context
from i2e_pipeline.link.disambiguate import Weights, disambiguate

Lookup = Callable[[str], list[dict[str, Any]]]
"""The candidates (entity_id, prior, kind) that the knowledge base holds under exactly this normal form."""


def resolve(form: str, lookup: Lookup) -> list[dict[str, Any]]:
    """The candidates of one form."""
    return candidates_of(form, {key: found for key, _ in keys_of(form) if (found := lookup(key))})


def link_rows(
    texts: Sequence[str], recognizer: Recognizer, gazetteer: Gazetteer | None, lookup: Lookup, max_mentions: int = 32
) -> list[dict[str, Any]]:
    """LINK_ROWS of cleaned texts, in their order, texts without a mention with an empty list."""
    ids = [i.to_bytes(16, "big") for i in range(len(texts))]
    rows: list[dict[str, Any]] = [{"text_id": i, "text": t, "mentions": []} for i, t in zip(ids, texts, strict=True)]
    for start in range(0, len(texts), 512):
        part = slice(start, start + 512)
        batch = pa.RecordBatch.from_arrays(
            [pa.array(ids[part], pa.binary(16)), pa.array(texts[part], pa.string())], names=["text_id", "text"]
        )
        for table, found in find_mentions([batch], recognizer, gazetteer, max_mentions):
            for mention in found.to_pylist() if table == "mentions" else ():
                row = rows[int.from_bytes(mention.pop("text_id"), "big")]
                row["mentions"].append({**mention, "candidates": resolve(mention["normal_form"], lookup)})
    return rows


def link_texts(
    texts: Sequence[str],
    recognizer: Recognizer,
    gazetteer: Gazetteer | None,
    lookup: Lookup,
    context: Context | None,
    settings: LinkConfig | None = None,
    weights: Weights | None = None,
) -> list[list[dict[str, Any]]]:
    """For each text its mentions, in the form that `i2e link` writes: offsets and surfaces of the text as it was
    given."""
    cleaned = [clean_with_offsets(text) for text in texts]
    rows = link_rows([text for text, _ in cleaned], recognizer, gazetteer, lookup)
    found: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for start in range(0, len(rows), 512):
        batch = pa.RecordBatch.from_pylist(rows[start : start + 512], schema=LINK_ROWS)
        for table, links in disambiguate([batch], context, settings or LinkConfig(), weights or Weights()):
            for link in links.to_pylist() if table == "candidates" else ():
                place = (int.from_bytes(link["text_id"], "big"), link["start"], link["end"])
                found.setdefault(place, []).append({"entity_id": link["entity_id"], "probability": link["probability"]})
    result = []
    for i, (row, text, (_, spans)) in enumerate(zip(rows, texts, cleaned, strict=True)):
        mentions = []
        for m in row["mentions"]:
            start, end = int(spans[m["start"], 0]), int(spans[m["end"] - 1, 1])
            candidates = found.get((i, m["start"], m["end"]), [])
            mentions.append(
                {"start": start, "end": end, "surface": text[start:end], "label": m["label"], "candidates": candidates}
            )
        result.append(mentions)
    return result
