"""Alt-text for the scenes: what a shop, a blog, a stock agency or a file system would have called the picture.

Names are planted in a caption: of the entity in the picture, of that and another, of another only, or none. Then the
text is spoiled as web text is: case, HTML entities, mojibake, CSV quotes, shop suffixes, white space, cut ends.
"""

from __future__ import annotations

import html
import random
import re
from dataclasses import dataclass
from functools import cache

from i2e_pipeline.sample.templates import CONTEXT, FILES, FOREIGN, NEUTRAL, NOTHING, PAIR, SENSE, SHOP
from i2e_pipeline.sample.world import Entity, World


@dataclass(frozen=True)
class Caption:
    """An alt-text and what was planted in it."""

    text: str
    mentioned: tuple[str, ...]
    """Ids, in the order of planting."""
    spans: tuple[tuple[str, str], ...]
    """(surface as it stands in the text, id) of each planted mention."""
    colliding: bool
    """The caption names the truth by a name that another entity bears too."""


@cache
def usable(entity: Entity) -> tuple[str, ...]:
    """Names people write: no codes, no list entries, no brackets."""

    def plain(s: str) -> bool:
        return bool(re.fullmatch(r"[A-Za-z][A-Za-z .'-]{2,34}", s)) and not (
            s.isupper() and len(s) <= 3 and s not in ("USA",)
        )

    nice = tuple(s for s in entity.surfaces if plain(s)) or (entity.label,)
    # Wikidata's lists end with long official forms and old epithets; people use the first names.
    return nice[:5]


def _surface(rng: random.Random, entity: Entity, world: World) -> str:
    names = usable(entity)
    shared = [s for s in names if s.casefold() in world.collisions]
    drawn = {e.id for e in world.depicted}
    rivals = [s for s in shared if sum(q in drawn for q in world.collisions[s.casefold()]) > 1]
    roll = rng.random()
    if rivals and roll < 0.7:
        return rivals[0] if rng.random() < 0.8 else rng.choice(rivals)
    if shared and roll < 0.45:
        return shared[0]
    if len(names) > 1 and rng.random() < (0.5 if " " in names[0] else 0.2):
        return rng.choice(names[1:])
    return names[0]


def _template(rng: random.Random, entity: Entity) -> str:
    roll = rng.random()
    if entity.id in SENSE and roll < 0.25:
        return rng.choice(SENSE[entity.id])
    if roll < 0.6:
        return rng.choice(NEUTRAL)
    return rng.choice(CONTEXT[entity.kind])


def _styled(rng: random.Random, surface: str) -> str:
    """As it would stand in running text: common nouns in any case, names as they are."""
    roll = rng.random()
    if surface[0].islower():
        if roll < 0.35:
            return surface[0].upper() + surface[1:]
        if roll < 0.5:
            return surface.title()
    return surface


def _fill(rng: random.Random, template: str, **names: str) -> str:
    return template.format(n=rng.randint(1000, 99999), k=rng.randint(10, 39), d=rng.randint(1, 9), **names)


def _spoil(rng: random.Random, text: str) -> str:
    roll = rng.random()
    if roll < 0.09:
        text = text.lower()
    elif roll < 0.13:
        text = text.upper()
    if rng.random() < 0.14:
        text += rng.choice(SHOP)
    if rng.random() < 0.04:
        text = f"{rng.choice(('Amazon.com:', 'File:', 'Image:', 'Re:', '★', '【NEW】'))} {text}"
    roll = rng.random()
    if roll < 0.05:
        text = html.escape(text, quote=True).replace(" ", "&nbsp;" if rng.random() < 0.3 else " ", 1)
    elif roll < 0.07:
        text = f'"{text}"'
    elif roll < 0.09 and not text.isascii():
        text = text.encode("utf-8").decode("cp1252", "replace")
    elif roll < 0.11:
        text = text.replace(" ", "  ", 1) + " "
    elif roll < 0.13:
        text += "..."
    elif roll < 0.15:
        text += rng.choice(("\n", " \u200b", " 購入 送料無料", " ❤️", " &amp; more", "\xa0"))
    return text


def _other(rng: random.Random, truth: Entity, world: World) -> Entity:
    """Another drawn entity, no name of which is one of the truth's; of the same kind more often than not."""
    taken = {s.casefold() for s in (*truth.surfaces, *truth.names.values())}
    while True:
        other = rng.choice(world.depicted)
        if other.kind != truth.kind and rng.random() < 0.5:
            continue
        if other.id != truth.id and not any(s.casefold() in taken for s in (*other.surfaces, *other.names.values())):
            return other


def caption(rng: random.Random, truth: Entity, world: World) -> Caption:
    """An alt-text for a picture of `truth`: .66 name it, .18 and another, .09 only another, .07 nothing."""
    roll = rng.random()
    if roll < 0.07:
        return Caption(_spoil(rng, _fill(rng, rng.choice(NOTHING))), (), (), False)
    if roll < 0.16:
        other = _other(rng, truth, world)
        surface = _styled(rng, _surface(rng, other, world))
        text = _spoil(rng, _fill(rng, _template(rng, other), s=surface))
        return Caption(text, (other.id,), ((surface, other.id),), False)
    surface = _styled(rng, _surface(rng, truth, world))
    colliding = surface.casefold() in world.collisions
    if roll < 0.34:
        other = _other(rng, truth, world)
        second = _styled(rng, _surface(rng, other, world))
        text = _spoil(rng, _fill(rng, rng.choice(PAIR), s=surface, o=second))
        return Caption(text, (truth.id, other.id), ((surface, truth.id), (second, other.id)), colliding)
    if rng.random() < 0.07:
        language = rng.choice(tuple(FOREIGN))
        surface = truth.names[language]
        text = _spoil(rng, _fill(rng, rng.choice(FOREIGN[language]), s=surface))
        return Caption(text, (truth.id,), ((surface, truth.id),), len(world.bearers.get(surface.casefold(), ())) > 1)
    if rng.random() < 0.03:
        surface = surface.lower().replace(" ", "-")
        return Caption(_fill(rng, rng.choice(FILES), s=surface), (truth.id,), ((surface, truth.id),), colliding)
    text = _spoil(rng, _fill(rng, _template(rng, truth), s=surface))
    return Caption(text, (truth.id,), ((surface, truth.id),), colliding)
