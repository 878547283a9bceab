"""Texts linked in this process by the tables of a run, without Spark: for a few texts, and for what a run did with one.

Nothing is written but what workers would lay out, too: the gazetteer and the context of the knowledge base, where they
are not there yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.extract import gazetteer, recognizer
from i2e_pipeline.extract.mentions import find_mentions
from i2e_pipeline.extract.overlooked import is_common, name_like, parts
from i2e_pipeline.link.candidates import GROUP_NAMES, in_order, keys_of, link_rows
from i2e_pipeline.link.context import Context
from i2e_pipeline.link.disambiguate import Weights
from i2e_pipeline.link.explain import explain_links
from wikidata.surface import inflections, normal_form


class NoKnowledgeBase(I2EError):
    """There is nothing to link with yet."""


def linked(
    run: Run, texts: Mapping[bytes, str], groups: Mapping[bytes, bytes | None] | None = None
) -> dict[bytes, dict[str, Any]]:
    """What each cleaned text, alone or in its group, names: `mentions` as explain_links gives them, and `overlooked`,
    the words that look like names and are no mention, each with the reason."""
    config = run.config.extract
    laid_out = _laid_out(run, "mentions", "kb/gazetteer", "kb/surfaces") if config.gazetteer else None
    model = recognizer.load(config.recognizer, config.batch_size)
    names = gazetteer.Gazetteer(laid_out) if laid_out else None
    rows = pa.RecordBatch.from_pydict(
        {"text_id": pa.array(list(texts), pa.binary(16)), "text": pa.array(list(texts.values()), pa.string())}
    )
    found = [
        row
        for table, batch in find_mentions([rows], model, names, config.max_mentions, config.profile)
        if table == "mentions"
        for row in batch.to_pylist()
    ]
    mentions = explained(run, texts, found, groups)
    overlooked = _overlooked(run, {i: (text, mentions[i]) for i, text in texts.items()})
    return {i: {"mentions": mentions[i], "overlooked": overlooked[i]} for i in texts}


def explained(
    run: Run,
    texts: Mapping[bytes, str],
    mentions: Iterable[Mapping[str, Any]],
    groups: Mapping[bytes, bytes | None] | None = None,
    elsewhere: Mapping[bytes, Sequence[str]] | None = None,
) -> dict[bytes, list[dict[str, Any]]]:
    """What speaks for each candidate of the texts' mentions (rows of the table), with the entities' names.

    groups     group_id of each text that is in a group
    elsewhere  of a group the names in texts that are not given, as `names_of_group` chooses them
    """
    mentions = list(mentions)
    forms = {m["normal_form"] for m in mentions}.union(*(elsewhere or {}).values())
    keys = {key for form in forms for key, _ in keys_of(form)}
    known = {row["normal_form"]: row["candidates"] for row in surfaces(run, keys)}
    context = Context(_laid_out(run, "candidates", "kb/context", "kb/entities"))
    settings = run.config.link
    rows = link_rows(texts, mentions, known, groups, elsewhere)
    told = explain_links(rows, context, settings, Weights.load(settings.weights))
    candidates = [c for of_text in told for m in of_text for c in m["candidates"]]
    names = entities(run, {c["entity_id"] for c in candidates})
    for c in candidates:
        c |= names.get(c["entity_id"], NAMELESS)
    return dict(zip(texts, told, strict=True))


def names_of_group(run: Run, forms: Iterable[str]) -> list[str]:
    """Of the names of a group, as normal forms, those that count: the first that the knowledge base holds."""
    ordered, kept = in_order(forms), list[str]()
    for start in range(0, len(ordered), _LOOKED_UP):
        some = ordered[start : start + _LOOKED_UP]
        known = {row["normal_form"] for row in surfaces(run, {key for form in some for key, _ in keys_of(form)})}
        kept += [form for form in some if any(key in known for key, _ in keys_of(form))]
        if len(kept) >= GROUP_NAMES:
            break
    return kept[:GROUP_NAMES]


_LOOKED_UP = 4 * GROUP_NAMES
"""Names that the knowledge base is asked for at once; most that a run mentions are known."""


NAMELESS: Mapping[str, Any] = {"name": None, "description": None}
"""Of an entity that the knowledge base no longer holds."""


def entities(run: Run, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Name and description of entities, of those that the knowledge base holds."""
    columns = ["entity_id", "name", "description"]
    found = _of_knowledge_base(
        run, "kb/entities", pc.field("entity_id").isin(pa.array(sorted(ids), pa.int64())), columns
    )
    return {row.pop("entity_id"): row for row in found}


def surfaces(run: Run, forms: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of kb/surfaces of these normal forms."""
    return _of_knowledge_base(run, "kb/surfaces", pc.field("normal_form").isin(pa.array(sorted(forms), pa.string())))


def _of_knowledge_base(
    run: Run, table: str, wanted: pc.Expression, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    commits = run.commits_of(table)
    if not commits:
        last = run.writer("kb/surfaces").name
        folder = files.folder_of(run.tables.path(table))
        raise NoKnowledgeBase(f"{folder} holds no knowledge base: `i2e run --until {last}` makes it")
    rows: list[dict[str, Any]] = run.tables.where(table, commits, wanted, columns).to_pylist()
    return rows


def _laid_out(run: Run, table: str, folder: str, of: str) -> str:
    """Where the writer of a table lays out a folder, made of another table, for its workers; it does so now if it has
    not."""
    if not run.commits_of("kb/surfaces"):
        _of_knowledge_base(run, "kb/surfaces", pc.scalar(False))
    stage = run.writer(table)
    handed = run.handed_to(stage)
    stage.prepare(handed)
    return run.tables.local_path(*folder.split("/"), stage.lays_out(handed)[folder], of=of)


def _overlooked(
    run: Run, texts: Mapping[bytes, tuple[str, Sequence[Mapping[str, Any]]]]
) -> dict[bytes, list[dict[str, Any]]]:
    gate = run.config.extract.min_link_probability
    runs = {i: name_like(text, [(m["start"], m["end"]) for m in mentions]) for i, (text, mentions) in texts.items()}
    forms = {
        (i, span): [form, *inflections(form)]
        for i, of_text in runs.items()
        for words in of_text
        for span in parts(texts[i][0], words)
        if (form := normal_form(texts[i][0][slice(*span)]))
    }
    wanted = {form for of_span in forms.values() for form in of_span}
    known = {row["normal_form"]: row for row in surfaces(run, wanted)} if wanted else {}

    def why(row: Mapping[str, Any]) -> str:
        if not run.config.extract.gazetteer:
            return "the recognizer does not see it, and extract.gazetteer is off"
        held = "the gazetteer holds it: the text names more than extract.max_mentions, or a longer name hides it"
        return gazetteer.refused(row, gate) or held

    found: dict[bytes, list[dict[str, Any]]] = {}
    for i, (text, _) in texts.items():
        told = []
        for words in runs[i]:
            here: list[tuple[int, int, str | None, float | None]] = []
            for span in parts(text, words):
                row = next((known[form] for form in forms.get((i, span), ()) if form in known), None)
                if row is not None and not any(s < span[1] and span[0] < e for s, e, *_ in here):
                    here.append((*span, why(row), round(row["link_probability"], 6)))
            if not here and not (len(words) == 1 and is_common(text[slice(*words[0])])):
                here = [(words[0][0], words[-1][1], "no entity has this name", None)]
            told += sorted(here)
        found[i] = [
            {"start": s, "end": e, "surface": text[s:e], "why": reason, "link_probability": probability}
            for s, e, reason, probability in told
        ]
    return found
