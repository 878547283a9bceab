"""The sample world in the form of a Wikidata JSON dump, with the irregularities that real dumps have."""

from __future__ import annotations

import bz2
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from i2e_pipeline.sample.world import Entity, World

_CODES = """
en de fr es it nl pl ru ja zh pt sv uk ca no fi cs hu ko ar tr id ro fa vi da eo sr lt sk he bg sl et hr hi el
th la gl nn az be cy eu ka mk bn ta ms sh simple ur hy af lv sq bs sw te ml mr tl ne kn sco ga yi my lb is jv
br oc kk io scn an qu war ast ht pnb ku als nds wa su uz tg mn tt fy si gu pa or as sa mg am so yo zu ig ha rw
ln lg st sn xh tn ts ve
"""
WIKIS: tuple[str, ...] = tuple(_CODES.split())
"""Language codes for the sitelinks. The sample knows how many sitelinks an item has, not which ones."""

PROPERTY_LINE: dict[str, Any] = {
    "type": "property", "datatype": "wikibase-item", "id": "P31",
    "labels": {"en": {"language": "en", "value": "instance of"}},
    "descriptions": {"en": {"language": "en", "value": "class of which this subject is a particular example"}},
    "aliases": {"en": [{"language": "en", "value": "is a"}]}, "claims": {},
}  # fmt: skip


def _dice(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:6], "big") / 2**48


def _term(language: str, value: str) -> dict[str, str]:
    return {"language": language, "value": value}


def _item_snak(prop: str, qid: str) -> dict[str, Any]:
    value = {"entity-type": "item", "numeric-id": int(qid[1:]), "id": qid}
    return {
        "snaktype": "value", "property": prop, "datatype": "wikibase-item",
        "datavalue": {"value": value, "type": "wikibase-entityid"},
    }  # fmt: skip


def _text_snak(prop: str, value: str, datatype: str) -> dict[str, Any]:
    return {
        "snaktype": "value",
        "property": prop,
        "datavalue": {"value": value, "type": "string"},
        "datatype": datatype,
    }


def _statement(entity: Entity, prop: str, number: int, snak: dict[str, Any], rank: str = "normal") -> dict[str, Any]:
    digest = hashlib.sha256(f"{entity.id}/{prop}/{number}".encode()).hexdigest()
    guid = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32])).upper()
    return {"mainsnak": snak, "type": "statement", "id": f"{entity.id}${guid}", "rank": rank}


def _claims(entity: Entity) -> dict[str, list[dict[str, Any]]]:
    claims: dict[str, list[dict[str, Any]]] = {}
    kinds = [_statement(entity, "P31", i, _item_snak("P31", q)) for i, q in enumerate(entity.types)]
    if entity.art and _dice(entity.id, "deprecated") < 0.08:
        kinds.append(_statement(entity, "P31", 90, _item_snak("P31", "Q11424"), rank="deprecated"))
    if kinds:
        claims["P31"] = kinds
    if entity.art and _dice(entity.id, "image") < 0.92:
        claims["P18"] = [_statement(entity, "P18", 0, _text_snak("P18", f"{entity.label}.jpg", "commonsMedia"))]
    elif _dice(entity.id, "no image") < 0.2:
        snak = {"snaktype": "novalue", "property": "P18", "datatype": "commonsMedia"}
        claims["P18"] = [_statement(entity, "P18", 0, snak)]
    if entity.art.startswith("flag:"):
        claims["P41"] = [_statement(entity, "P41", 0, _text_snak("P41", f"Flag of {entity.label}.svg", "commonsMedia"))]
    return claims


def item_line(entity: Entity) -> dict[str, Any]:
    """One dump line, as an object; empty maps come out as `[]`, as PHP writes them."""
    # English labels are on their way from `en` to `mul`: some items have only the latter.
    english = "mul" if _dice(entity.id, "mul") < 0.12 else "en"
    labels = {english: _term(english, entity.label)} | {k: _term(k, v) for k, v in entity.names.items()}
    descriptions = {"en": _term("en", entity.description)} if entity.description else {}
    aliases = {english: [_term(english, a) for a in dict.fromkeys(entity.aliases)]} if entity.aliases else {}
    sitelinks = {
        f"{code}wiki": {"site": f"{code}wiki", "title": entity.label, "badges": []}
        for code in WIKIS[: min(entity.sitelinks, len(WIKIS))]
    }
    line: dict[str, Any] = {
        "type": "item", "id": entity.id, "labels": labels, "descriptions": descriptions or [], "aliases": aliases or [],
        "claims": _claims(entity) or [], "sitelinks": sitelinks or [], "lastrevid": 2_000_000_000 + int(entity.id[1:]),
    }  # fmt: skip
    return line


def dump_lines(world: World) -> Iterator[str]:
    """The dump: `[`, a line per entity in the order of ids, `]`."""
    entities = sorted((*world.depicted, *world.others), key=lambda e: int(e.id[1:]))
    rows = [PROPERTY_LINE, *map(item_line, entities)]
    yield "[\n"
    for i, row in enumerate(rows):
        yield json.dumps(row, ensure_ascii=_dice(row["id"], "ascii") < 0.5, separators=(",", ":")) + (
            ",\n" if i + 1 < len(rows) else "\n"
        )
    yield "]\n"


def write_dump(world: World, path: Path) -> None:
    """`dump.json.bz2`."""
    with bz2.open(path, "wt", encoding="utf-8", compresslevel=9) as out:
        out.writelines(dump_lines(world))


def write_popularity(world: World, path: Path) -> None:
    """`popularity.csv`: qid, sitelinks. Some entities are missing, as in every such list."""
    known = [e for e in (*world.depicted, *world.others) if _dice(e.id, "popularity") < 0.95]
    rows = (f"{e.id},{e.sitelinks}\n" for e in sorted(known, key=lambda e: int(e.id[1:])))
    path.write_text("qid,sitelinks\n" + "".join(rows))


def write_anchors(world: World, path: Path) -> None:
    """`anchors.tsv`: how often a link with this text led to this entity. It stands in for Wikipedia's link texts.

    Counts grow with an entity's fame and are lower for names that come later in its list. So the prior prefers the
    best-known bearer of a name, which is often the wrong one, and only the picture can overrule it.
    """
    rows = []
    for e in (*world.depicted, *world.others):
        for place, surface in enumerate(e.surfaces[:8]):
            count = round(e.sitelinks**1.3 / (1 + place) ** 1.5 * (0.3 + 1.4 * _dice(e.id, surface)) / 10)
            if count:
                rows.append((surface, int(e.id[1:]), count))
    path.write_text("surface\tqid\tcount\n" + "".join(f"{s}\tQ{q}\t{n}\n" for s, q, n in sorted(rows)))
