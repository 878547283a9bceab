"""The sample world: which entities there are, what they are called, and which of them are drawn.

Facts (ids, names, descriptions, types) are Wikidata's, CC0. `world/depicted.jsonl` holds what pictures show,
`world/others.jsonl` what only shares their names (films, bands, people, places, chemical elements …) or fills a dump.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from i2e_pipeline.core.packaged import folder

HERE = folder(__package__)
ART = HERE / "art"

HELD_OUT_STYLE = "twemoji"
"""The art style that no training ever sees. Figures on it say whether the scorer recognises things or remembers
drawings."""


@dataclass(frozen=True)
class Entity:
    """One Wikidata item, as far as the sample needs it."""

    id: str
    label: str
    description: str | None
    aliases: tuple[str, ...]
    """English aliases, as the real items have them, with their disorder."""
    types: tuple[str, ...]
    """P31, ids."""
    sitelinks: int
    """About how many Wikipedias have an article on it."""
    names: dict[str, str] = field(default_factory=dict, hash=False)
    """Labels in other languages."""
    kind: str = ""
    """LOC, ANIMAL, FOOD, PLANT, SPORT, SPACE or THING; empty for what is not drawn."""
    art: str = ""
    """What an emoji set calls it, `flag:xx` for flags; empty for what is not drawn."""

    @property
    def surfaces(self) -> tuple[str, ...]:
        """English names a caption may use: no codes, no emoji."""
        return tuple(dict.fromkeys(s for s in (self.label, *self.aliases) if len(s) > 2 and s.isascii()))


@dataclass(frozen=True)
class World:
    """All entities, and who shares a name with whom."""

    depicted: tuple[Entity, ...]
    others: tuple[Entity, ...]

    @cached_property
    def by_id(self) -> dict[str, Entity]:
        return {e.id: e for e in (*self.depicted, *self.others)}

    @cached_property
    def bearers(self) -> dict[str, tuple[str, ...]]:
        """Case-folded name → ids of the entities that bear it, in any language."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for e in (*self.depicted, *self.others):
            for surface in (*e.surfaces, *e.names.values()):
                found[surface.casefold()].add(e.id)
        return {s: tuple(sorted(ids, key=lambda q: int(q[1:]))) for s, ids in sorted(found.items())}

    @cached_property
    def collisions(self) -> dict[str, tuple[str, ...]]:
        """English names of drawn entities that another entity bears too, each with the ids of all its bearers."""
        drawn = {s.casefold() for e in self.depicted for s in e.surfaces}
        english: defaultdict[str, set[str]] = defaultdict(set)
        for e in (*self.depicted, *self.others):
            for surface in e.surfaces:
                english[surface.casefold()].add(e.id)
        return {s: tuple(sorted(ids)) for s, ids in sorted(english.items()) if s in drawn and len(ids) > 1}


def _read(name: str) -> tuple[Entity, ...]:
    def entity(row: dict[str, Any]) -> Entity:
        return Entity(**{**row, "aliases": tuple(row["aliases"]), "types": tuple(row["types"])})

    return tuple(entity(json.loads(line)) for line in (HERE / "world" / f"{name}.jsonl").read_text().splitlines())


@lru_cache(maxsize=1)
def load_world() -> World:
    """The world that ships with the project."""
    return World(_read("depicted"), _read("others"))
