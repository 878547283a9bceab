"""What the pages ask of the index (index.py): names, entities, images, what was confused. Read-only, values bound.

Every answer is bounded: a page of a list, a histogram, the first of something. A cursor is made for each question, so
that threads may ask side by side.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from i2e_pipeline.core.domains import in_ascii
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.explore.index import FOLDED, WINDOW
from i2e_pipeline.images.near_hashes import NEAR_BITS

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PAGE = 60
"""Rows of a page of a list."""
_HITS = 12
_NAMESAKES = 24
_MOST_NAMES = 20_000
"""Names that a beginning is looked through for; a letter begins more, and then the entities of most images count."""
_SCANNED = 30_000_000
"""Images whose hashes one question compares: half a second."""

ENTITY_SORTS = {
    "images": "images DESC, entity_id",
    "-images": "images, entity_id",
    "name": "name, entity_id",
    "probability": "mean_probability DESC NULLS LAST, entity_id",
    "-probability": "mean_probability NULLS LAST, entity_id",
    "clip": "mean_clip_score DESC NULLS LAST, entity_id",
    "fame": "sitelinks DESC NULLS LAST, entity_id",
    "proposed": "pairs_proposed DESC NULLS LAST, entity_id",
}
IMAGE_SORTS = {
    "score": "score DESC, image_id",
    "-score": "score, image_id",
    "clip": "clip_score DESC NULLS LAST, image_id",
    "-clip": "clip_score NULLS LAST, image_id",
    "hash": "image_id, entity_id",
}
_SHOWN = (
    "entity_id, name, description, images, pairs_proposed, pairs_labelled, mean_clip_score, mean_probability, "
    "coarse_type, sitelinks, retired"
)


class BadFilter(I2EError, ValueError):
    """A filter of an address that is none; the message names it."""


@dataclass(frozen=True)
class Where:
    """Conditions with their values."""

    conditions: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    @property
    def sql(self) -> str:
        return " AND ".join(self.conditions) or "true"

    def also(self, condition: str, *values: Any) -> Where:
        return Where((*self.conditions, condition), (*self.values, *values))


class Queries:
    def __init__(self, index: DuckDBPyConnection) -> None:
        self._index, self._lock = index, threading.Lock()

    def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with self._lock:
            cursor = self._index.cursor()
        try:
            found = cursor.execute(sql, list(values))
            names = [column[0] for column in found.description]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        finally:
            cursor.close()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What every page says of the dataset."""
        told: dict[str, Any] = json.loads(self._rows("SELECT told FROM facts")[0]["told"])
        return told

    # Names

    def hits(self, typed: str, most: int = _HITS) -> list[dict[str, Any]]:
        """Entities with a name, alias or id that has what was typed at the beginning of a word: whole names first, then
        those of most images."""
        form = self._folded(typed)
        if not form:
            return []
        return self._rows(
            f"""
            WITH found AS (
                SELECT entity_id, min((form NOT IN (?, 'q' || ?))::INT * 4 + kind) AS place, max(images) AS most
                FROM (
                    SELECT * FROM names WHERE form IN (?, 'q' || ?)
                    UNION ALL (
                        SELECT * FROM names WHERE form >= ? AND form < ? ORDER BY images DESC LIMIT {_MOST_NAMES}
                    )
                )
                GROUP BY entity_id ORDER BY place < 4 DESC, most DESC, place, entity_id LIMIT {int(most)}
            )
            SELECT {_SHOWN} FROM found JOIN entities e USING (entity_id)
            ORDER BY place < 4 DESC, images DESC, place, entity_id
            """,
            form, form, form, form, form, _next(form),
        )  # fmt: skip

    def _folded(self, typed: str) -> str:
        folded: str = self._rows(f"SELECT {FOLDED.format('?')} AS form", typed[:200])[0]["form"]
        return folded[:60]

    # Entities

    def entity(self, entity_id: int) -> dict[str, Any] | None:
        found = self._rows("SELECT * FROM entities WHERE entity_id = ?", entity_id)
        return found[0] if found else None

    def names_of(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        if not ids:
            return {}
        rows = self._rows(f"SELECT {_SHOWN} FROM entities WHERE list_contains(?, entity_id)", sorted(set(ids)))
        return {row["entity_id"]: row for row in rows}

    def entities(self, asked: Mapping[str, str], offset: int = 0, most: int = PAGE) -> dict[str, Any]:
        """A page of entities: total, rows. asked: q, type, script, domain, min_images, max_images, min_probability,
        max_probability, min_fame, with (all: also those without images), sort."""
        where = Where() if asked.get("with") == "all" else Where(("images > 0",))
        if typed := self._folded(asked.get("q", "")):
            where = where.also(
                "entity_id IN (SELECT entity_id FROM names WHERE form >= ? AND form < ?)", typed, _next(typed)
            )
        for name, column in (("type", "coarse_type"), ("script", "script")):
            if value := asked.get(name):
                where = where.also(f"{column} = ?", value)
        if domain := asked.get("domain"):
            where = where.also("entity_id IN (SELECT entity_id FROM labels WHERE domain_id = ?)", self._domain(domain))
        where = _between(where, asked, "images", "images")
        where = _between(where, asked, "probability", "mean_probability")
        where = _between(where, asked, "fame", "sitelinks")
        order = _one_of(asked, "sort", ENTITY_SORTS, "images")
        total = self._rows(f"SELECT count(*) AS n FROM entities WHERE {where.sql}", *where.values)[0]["n"]
        rows = self._rows(
            f"SELECT {_SHOWN} FROM entities WHERE {where.sql} ORDER BY {order} LIMIT {int(most)} OFFSET {int(offset)}",
            *where.values,
        )
        return {"total": total, "offset": offset, "rows": rows}

    def namesakes(self, entity: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Other entities that bear the name, or an alias, of this one: side by side."""
        said = [s for s in (entity["name"], *(entity["aliases"] or ())) if s]
        forms = [form for form in dict.fromkeys(self._folded(s) for s in said[:16]) if form]
        if not forms:
            return []
        alike = " UNION ALL ".join("SELECT entity_id FROM names WHERE form = ? AND kind < 2" for _ in forms)
        ids = [row["entity_id"] for row in self._rows(f"SELECT DISTINCT entity_id FROM ({alike})", *forms)]
        others = self.names_of([i for i in ids if i != entity["entity_id"]])
        return sorted(others.values(), key=lambda e: (-e["images"], e["entity_id"]))[:_NAMESAKES]

    def about(self, entity: Mapping[str, Any]) -> dict[str, Any]:
        """What an entity's page shows beside its images: scores (20 bins of probability), clip (40 bins over -1 … 1),
        surfaces, domains, scripts, units; confused both ways; `of_pairs`, the columns ENTITY_DETAILS, of all pairs that
        proposed it (None where the dataset has none)."""
        rows = f"labels WHERE rowid >= {int(entity['first'])} AND rowid < {int(entity['first'] + entity['images'])}"
        wanted = {
            "scores": f"SELECT least(floor(score * 20), 19)::INT AS bin, count(*) AS n FROM {rows} "
            "GROUP BY 1 ORDER BY 1",
            "clip": f"SELECT floor(clip_score * 20)::INT AS bin, count(*) AS n FROM {rows} "
            "AND clip_score IS NOT NULL GROUP BY 1 ORDER BY 1",
            "surfaces": f"SELECT mention, count(*) AS n, avg(score) AS score FROM {rows} AND mention IS NOT NULL "
            "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 30",
            "domains": "SELECT domain, here.n FROM (SELECT domain_id, count(*) AS n "
            f"FROM {rows} AND domain_id IS NOT NULL GROUP BY 1) here JOIN domains USING (domain_id) "
            "ORDER BY here.n DESC, domain LIMIT 12",
            "scripts": f"SELECT script, count(*) AS n FROM {rows} GROUP BY 1 ORDER BY 2 DESC, 1",
            "splits": f"SELECT split, count(*) AS n FROM {rows} AND split IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1",
            "units": f"SELECT unit, count(*) AS n, avg(score) AS score FROM (SELECT file, score FROM {rows}) "
            "JOIN files USING (file) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 12",
        }
        told: dict[str, Any] = {name: self._rows(sql) for name, sql in wanted.items()} if entity["images"] else {}
        details = self._rows("SELECT * FROM details WHERE entity_id = ?", entity["entity_id"])
        told["of_pairs"] = details[0] if details else None
        shown = "other_id, same_name, pairs, probability, replace(image_id::VARCHAR, '-', '') AS image_id"
        told["lost_to"] = self._rows(
            f"SELECT {shown} FROM confused WHERE entity_id = ? ORDER BY same_name DESC, pairs DESC, other_id LIMIT 16",
            entity["entity_id"],
        )
        told["won_over"] = self._rows(
            f"SELECT {shown.replace('other_id', 'entity_id AS other_id')} FROM confused WHERE other_id = ? "
            "ORDER BY same_name DESC, pairs DESC, entity_id LIMIT 16",
            entity["entity_id"],
        )
        return told

    def _domain(self, domain: str) -> int:
        with suppress(ValueError):  # what no name can be is the name of none
            domain = in_ascii(domain)
        found = self._rows("SELECT domain_id FROM domains WHERE domain = ?", domain.lower())
        return found[0]["domain_id"] if found else -1

    # Images

    def images(self, asked: Mapping[str, str], offset: int = 0, most: int = PAGE) -> dict[str, Any]:
        """A page of labels: total, rows (image_id, entity_id, score, clip_score, mention, alt_text, domain, …).
        asked: entity, domain, script, split, unit, mention, min_score, max_score, min_clip, max_clip, sort, text."""
        where, entity = Where(), None
        if value := asked.get("entity"):
            entity = self.entity(entity_number(value))
            if entity is None:
                return {"total": 0, "offset": offset, "rows": []}
            first = entity["first"]
            where = where.also("l.rowid >= ? AND l.rowid < ?", first, first + entity["images"])
        plain = len(where.conditions)
        for name in ("script", "split", "mention"):
            if value := asked.get(name):
                where = where.also(f"{name} = ?", value)
        if domain := asked.get("domain"):
            where = where.also("l.domain_id = ?", self._domain(domain))
        if unit := asked.get("unit"):
            where = where.also("file IN (SELECT file FROM files WHERE unit = ?)", unit)
        if text := asked.get("text"):
            where = where.also("contains(lower(alt_text), lower(?))", text[:200])
        if kind := asked.get("type"):
            where = where.also("entity_id IN (SELECT entity_id FROM entities WHERE coarse_type = ?)", kind)
        where = _between(where, asked, "score", "score")
        where = _between(where, asked, "clip", "clip_score")
        order = _one_of(asked, "sort", IMAGE_SORTS, "score" if entity else "hash")
        skipped = offset
        if len(where.conditions) > plain:
            total = self._rows(f"SELECT count(*) AS n FROM labels l WHERE {where.sql}", *where.values)[0]["n"]
        elif entity is None:
            total = self.facts["labels"]
            if order == IMAGE_SORTS["hash"]:
                return {"total": total, "offset": offset, "rows": self._named(self._in_hash_order(offset, most))}
        else:
            total = entity["images"]
            if order == IMAGE_SORTS["score"]:
                # The rows lie in this order: of however many, a page is read alone.
                first, last = (entity["first"] + min(n, total) for n in (offset, offset + most))
                where, skipped = Where(("l.rowid >= ? AND l.rowid < ?",), (first, last)), 0
        rows = self._rows(
            f"SELECT {_LABEL} FROM labels l WHERE {where.sql} ORDER BY {order} LIMIT {int(most)} OFFSET {int(skipped)}",
            *where.values,
        )
        return {"total": total, "offset": offset, "rows": self._named(rows)}

    def _in_hash_order(self, offset: int, most: int) -> list[dict[str, Any]]:
        """Labels in the order of their images' ids, which is as good as drawn."""
        if offset + most <= WINDOW:
            return self._rows(
                f"SELECT {_LABEL} FROM look l WHERE l.rowid >= ? AND l.rowid < ? ORDER BY l.rowid",
                offset,
                offset + most,
            )
        return self._rows(
            f"SELECT {_LABEL} FROM labels l ORDER BY {IMAGE_SORTS['hash']} LIMIT {int(most)} OFFSET {int(offset)}"
        )

    def _named(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = self.names_of([row["entity_id"] for row in rows])
        ids = sorted({row["domain_id"] for row in rows} - {None})
        domains = {
            row["domain_id"]: row["domain"]
            for row in (self._rows("SELECT * FROM domains WHERE list_contains(?, domain_id)", ids) if ids else ())
        }
        for row in rows:
            row["name"] = names.get(row["entity_id"], {}).get("name")
            row["domain"] = domains.get(row.pop("domain_id"))
        return rows

    def place_of(self, image_id: str) -> tuple[str, int, str] | None:
        """The file that an image lies in, its row there, and its unit."""
        found = self._rows(
            "SELECT f.path, i.row, f.unit FROM images i JOIN files f USING (file) WHERE i.image_id = ?::UUID", image_id
        )
        return (found[0]["path"], found[0]["row"], found[0]["unit"]) if found else None

    def ids_beginning(self, digits: str) -> list[str]:
        """Ids of images that begin with these hex digits, at most ten."""
        low, high = digits.ljust(32, "0"), digits.ljust(32, "f")
        rows = self._rows(
            "SELECT replace(image_id::VARCHAR, '-', '') AS image_id FROM images "
            "WHERE image_id >= ?::UUID AND image_id <= ?::UUID ORDER BY image_id LIMIT 10",
            low, high,
        )  # fmt: skip
        return [row["image_id"] for row in rows]

    def ids_of_unit(self, unit: str) -> list[str]:
        """Ids of the published images of a unit."""
        rows = self._rows(
            "SELECT replace(image_id::VARCHAR, '-', '') AS image_id FROM images "
            "WHERE file IN (SELECT file FROM files WHERE unit = ?)",
            unit,
        )
        return [row["image_id"] for row in rows]

    def near_duplicates(self, image_id: str, most: int = 24) -> list[dict[str, Any]] | None:
        """Images whose perceptual hash differs in 31 bits of 256 or fewer; None where nothing can be said: the dataset
        has no hashes, or more images than one question compares."""
        if not self.facts["hashed"] or self.facts["images"] > _SCANNED:
            return None
        return self._rows(
            f"""
            WITH asked AS (SELECT h0, h1, h2, h3 FROM images WHERE image_id = ?::UUID),
            near AS (
                SELECT i.image_id, bit_count(xor(i.h0, a.h0)) + bit_count(xor(i.h1, a.h1))
                    + bit_count(xor(i.h2, a.h2)) + bit_count(xor(i.h3, a.h3)) AS bits
                FROM images i, asked a WHERE i.h0 IS NOT NULL AND i.image_id <> ?::UUID
            )
            SELECT replace(image_id::VARCHAR, '-', '') AS image_id, bits FROM near WHERE bits <= {NEAR_BITS}
            ORDER BY bits, image_id LIMIT {int(most)}
            """,
            image_id, image_id,
        )  # fmt: skip

    # Marks

    def score_of(self, image_id: str, entity_id: int) -> float | None:
        """The probability of a published label; None where there is no such."""
        entity = self.entity(entity_id)
        if entity is None or not re.fullmatch(r"[0-9a-f]{32}", image_id):
            return None
        found = self._rows(
            "SELECT score FROM labels WHERE rowid >= ? AND rowid < ? AND image_id = ?::UUID",
            entity["first"], entity["first"] + entity["images"], image_id,
        )  # fmt: skip
        return found[0]["score"] if found else None

    def drawn(self) -> list[dict[str, Any]]:
        """The labels to mark, in their order: image_id, entity_id, pair_id, unit, shard, row, probability, published,
        weight."""
        return self._rows("SELECT * EXCLUDE (place) FROM drawn ORDER BY place")

    def weighed_counts(self) -> pa.Table:
        """How many labels there are by probability (drawing.counts)."""
        with self._lock:
            cursor = self._index.cursor()
        return cursor.sql("SELECT * FROM weighed_counts").to_arrow_table()

    def some(self, most: int) -> list[dict[str, Any]]:
        """The first labels by their images' hashes: nobody chose them."""
        return self._named(self._in_hash_order(0, most))


_LABEL = (
    "replace(l.image_id::VARCHAR, '-', '') AS image_id, l.entity_id, l.score, l.clip_score, l.mention, l.alt_text, "
    "l.domain_id, l.script, l.split"
)


def entity_number(written: str) -> int:
    """308 of Q308 or 308. Raises BadFilter."""
    found = re.fullmatch(r"[Qq]?(\d{1,18})", written.strip())
    if not found:
        raise BadFilter(f"{written!r} is no entity: Q308, or 308")
    return int(found[1])


def _next(form: str) -> str:
    """What stands behind every word that begins so."""
    return form + "\U0010ffff"


def _between(where: Where, asked: Mapping[str, str], name: str, column: str) -> Where:
    for bound, sign in (("min", ">="), ("max", "<=")):
        written = asked.get(f"{bound}_{name}", "").strip()
        if not written:
            continue
        try:
            value = float(written)
        except ValueError:
            raise BadFilter(f"{bound}_{name}: {written!r} is no number") from None
        where = where.also(f"{column} {sign} ?", value)
    return where


def _one_of(asked: Mapping[str, str], name: str, known: Mapping[str, str], default: str) -> str:
    value = asked.get(name) or default
    if value not in known:
        raise BadFilter(f"{name}: {value!r} is none of {', '.join(known)}")
    return known[value]
