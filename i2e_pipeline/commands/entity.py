"""`i2e entity`: what the knowledge base knows of an entity or of a name, and what Wikidata says now."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.pipeline import Pipeline
from wikidata.api import WikidataClient, WikidataError
from wikidata.surface import normal_form

_NAMES = 40
"""Names of an entity that are shown."""


class UnknownEntity(I2EError):
    """Nothing is known of what was asked for."""


def describe(pipeline: Pipeline, asked: str) -> str:
    """What the run's knowledge base holds of "Q308", or of everything that a name can mean. Needs no Spark.

    Raises UnknownEntity where there is no knowledge base, or nothing in it.
    """
    if re.fullmatch(r"[Qq]\d+", asked.strip()):
        return _entity(pipeline, int(asked.strip()[1:]))
    form = normal_form(asked)
    rows = _rows(pipeline, "kb/surfaces", pc.field("normal_form") == form)
    if not rows:
        raise UnknownEntity(f"no entity of {_folder(pipeline)} is called {asked!r} (looked for {form!r})")
    (row,) = rows
    candidates = sorted(row["candidates"], key=lambda c: -c["prior"])
    known = {e["entity_id"]: e for e in _entities(pipeline, [c["entity_id"] for c in candidates])}
    lines = [
        f"{asked}: written {', '.join(row['forms'][:8])}; "
        f"link probability {_number(row['link_probability'])}; "
        f"{'in' if row['gazetteer'] else 'not in'} the gazetteer"
    ]
    for c in candidates:
        entity = known.get(c["entity_id"], {})
        lines.append(f"  {c['prior']:.4f}  {c['kind']:<10} {_headline(c['entity_id'], entity)}")
    return "\n".join(lines)


def _entity(pipeline: Pipeline, entity_id: int) -> str:
    found = _entities(pipeline, [entity_id])
    if not found and (led := _rows(pipeline, "kb/redirects", pc.field("entity_id") == entity_id)):
        return f"Q{entity_id} was merged into Q{led[0]['into']}\n{_entity(pipeline, led[0]['into'])}"
    if not found:
        raise UnknownEntity(
            f"Q{entity_id} is not in {_folder(pipeline)}: the dump lacks it, or knowledge_base.skip leaves its kind out"
        )
    (entity,) = found
    lines = [_headline(entity_id, entity)]
    lines += [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entity.items() if value is not None]
    names = _rows(pipeline, "kb/names", pc.field("entity_id") == entity_id)
    forms = sorted({n["normal_form"] for n in names})
    priors: dict[str, str] = {}
    for row in _rows(pipeline, "kb/surfaces", pc.field("normal_form").isin(forms)):
        of = sorted(row["candidates"], key=lambda c: -c["prior"])
        rank = next((n for n, c in enumerate(of, 1) if c["entity_id"] == entity_id), None)
        prior = next((c["prior"] for c in of if c["entity_id"] == entity_id), 0.0)
        priors[row["normal_form"]] = f"prior {prior:.4f}, {rank} of {len(of)}" if rank else f"not among its {len(of)}"
    lines.append(f"  names ({len(names)}):")
    for name in sorted(names, key=lambda n: (n["normal_form"], n["surface"], n["kind"]))[:_NAMES]:
        meaning = priors.get(name["normal_form"], "in no surface")
        lines.append(f"    {name['surface']} ({name['kind']}, {name['language'] or '–'}): {meaning}")
    return "\n".join(lines)


def _headline(entity_id: int, entity: dict[str, Any]) -> str:
    described = f": {entity['description']}" if entity.get("description") else ""
    return f"Q{entity_id} {entity.get('name', '(not in kb/entities)')}{described}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _entities(pipeline: Pipeline, ids: Sequence[int]) -> list[dict[str, Any]]:
    return _rows(pipeline, "kb/entities", pc.field("entity_id").isin(list(ids)))


def _rows(pipeline: Pipeline, table: str, wanted: pc.Expression) -> list[dict[str, Any]]:
    """Rows of a table of the knowledge base; row groups whose statistics rule them out are not read."""
    tables = pipeline.tables
    commits = tables.commits_of(table)
    if not commits:
        raise UnknownEntity(f"{_folder(pipeline)} holds no knowledge base: `i2e run --until surfaces` makes it")
    return list(tables.where(table, commits.values(), wanted).to_pylist())


def _folder(pipeline: Pipeline) -> str:
    """Where the knowledge base lies."""
    return files.folder_of(pipeline.tables.path("kb/surfaces"))


def live(asked: str, contact: str) -> str:
    """What Wikidata says of "Q308" now, as JSON in the form of a dump line. Raises UnknownEntity."""
    if not re.fullmatch(r"[Qq]\d+", asked.strip()):
        raise UnknownEntity(f"--live takes an id, as Q308, and not {asked!r}: without --live, a name is looked up, too")
    try:
        client = WikidataClient(f"i2e-pipeline/1.0 ({contact})")
        found = list(client.items([asked.strip().upper()]))
    except (WikidataError, ValueError) as error:
        raise UnknownEntity(str(error)) from None
    return "\n".join(json.dumps(item, ensure_ascii=False, indent=1) for item in found)
