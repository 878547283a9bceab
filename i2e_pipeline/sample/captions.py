"""Alt-text for the scenes: what a shop, a blog, a stock agency or a file system would have called the picture.

A caption is planted: it names the entity in the picture, or that and another, or only another, or nothing. Then it is
spoiled as web text is: case, HTML entities, mojibake, CSV quotes, shop suffixes, white space, cut ends.
"""

from __future__ import annotations

import html
import random
import re
from dataclasses import dataclass
from functools import lru_cache

from i2e_pipeline.sample.world import Entity, World

NEUTRAL = (
    "{s}", "{s}", "{s}", "{s} - stock photo", "{s} | Free Download", "{s} clipart", "Illustration of {s}", "{s} vector image",
    "{s} royalty free stock images", "{s}, isolated on white background", "{s} sticker, waterproof, 3 inch", "{s} poster A3",
    "{s} wallpaper 1920x1080", "Cartoon {s}", "{s} coloring page for kids", "How to draw {s} step by step", "{s} T-Shirt Design PNG",
    "{s} coffee mug 11oz", "{s} enamel pin", "Learn to spell {s}", "{s} quiz", "{s} jigsaw puzzle 500 pieces", "The best of {s}",
    "{s} (photo: staff)", "{s} icon set", "A picture of {s} on a plain background", "Photo of {s}", "my {s} :)", "{s} close up",
    "Everything you need to know about {s}", "Facts about {s} for children", "{s} / handmade / limited edition", "{s} fridge magnets, set of 4",
    "{s} embroidered patch", "{s} (2014 series) print", "New: {s}!", "{s} phone case", "Thumbnail for {s}", "{s} worksheet",
    "Picture of the day: {s}", "{s} gift idea - Free shipping", "Wholesale {s} from china suppliers, MOQ 500 pcs", "{s} by Anna K. on 500px",
    "{s} greeting card", "Vintage {s} postcard 1962", "Buy {s} online", "{s} $12.99", "{s} 32pcs/lot", "{s} ~ cross stitch pattern",
    "Love this {s} #{n}", "{s} embroidery design", "Metal wall art: {s}", "{s}: a short history", "Why we love {s}", "Pin on {s}",
)  # fmt: skip
CONTEXT = {
    "LOC": (
        "{s} flag", "Flag of {s}", "{s} national flag 3x5 ft polyester", "National flag of {s} waving", "Flag of {s} button",
        "{s} flag emoji meaning", "Visit {s}: 10 places to see", "{s} travel guide", "Made in {s}", "Map, anthem and flag of {s}",
        "{s} vs rest of the world, group stage", "Greetings from {s}", "Flights to {s}", "Embassy of {s}", "{s} fan scarf",
    ),
    "ANIMAL": (
        "Wild {s} in the zoo", "Baby {s} cartoon", "{s} in its natural habitat", "The {s} and other animals", "Cute {s} nursery print",
        "{s} plush toy", "Animals A-Z: {s}", "{s} tattoo ideas", "Spotted a {s} this morning", "Farm and forest: the {s}",
    ),
    "FOOD": (
        "Fresh {s}", "{s} recipe", "Organic {s} 500g", "{s} nutrition facts, calories", "Healthy snack: {s}", "{s} salad recipe ideas",
        "Roast {s} with herbs", "{s} at the farmers market", "Is {s} good for you?", "Grilled {s} | What's for dinner?",
    ),
    "PLANT": ("{s} seeds, pack of 50", "{s} in bloom", "How to grow {s}", "Bouquet with {s}", "{s} flower drawing"),
    "SPORT": ("{s} equipment", "{s} club logo", "{s} world cup 2018", "Learn the rules of {s}", "{s} team training", "Youth {s} league"),
    "SPACE": ("The planet and the sky: {s}", "{s} as seen by a space probe", "Solar system: {s}", "{s} NASA image", "{s} at night sky"),
    "THING": (
        "{s} for sale", "Antique {s}", "Toy {s}", "{s} with warranty", "Used {s}, good condition", "{s} silhouette", "Old {s} in the garage",
        "{s} 3D model", "DIY {s} project", "{s} close-up, macro",
    ),
}  # fmt: skip
SENSE = {
    "Q43": ("{s} Istanbul holiday", "Ankara, {s}"), "Q848706": ("Thanksgiving {s}", "{s} bird"), "Q230": ("Tbilisi, {s}",),
    "Q1428": ("Atlanta, {s}", "{s} state flag"), "Q7987": ("Wireless {s} USB",), "Q2751034": ("Field {s} eating cheese",),
    "Q308": ("The planet {s}", "{s}, closest planet to the Sun"), "Q1921606": ("Mechanical gaming {s} RGB",),
    "Q901207": ("{s} lessons for beginners, MIDI",), "Q28425": ("{s} flying at night, cave",), "Q809910": ("Wooden {s} 32 inch, youth league",),
    "Q13194": ("{s} smoothie",), "Q43642": ("{s} bird, New Zealand",), "Q864693": ("Crispy {s} drumsticks",), "Q780": ("{s} on the farm laying eggs",),
    "Q41466": ("{s} puck NHL",), "Q1455": ("{s} on turf, Olympic games",), "Q1072": ("Anatomy of the {s}", "{s} surgery"),
    "Q3419242": ("Ace of {s}", "{s} playing cards suit"), "Q298": ("Santiago, {s}",), "Q165199": ("Red hot {s} sauce",), "Q41323": ("{s} NFL Super Bowl",),
    "Q2736": ("{s} FIFA goal",), "Q1223": ("Seattle, {s}",), "Q61": ("{s} capitol building",), "Q884": ("Seoul, {s}",), "Q423": ("Pyongyang, {s}",),
    "Q974": ("Kinshasa, {s}",), "Q971": ("Brazzaville, {s}",), "Q5283": ("{s} ring 2 carat",), "Q139": ("Chess {s} checkmate",),
}  # fmt: skip
FOREIGN = {
    "de": ("{s} kaufen - kostenloser Versand", "{s} Aufkleber", "Bild: {s}", "{s} Ausmalbild", "{s} günstig online bestellen", "Poster {s} 50x70"),
    "es": ("Comprar {s} online - envío gratis", "{s} para colorear", "Imagen de {s}", "Fotos de {s}", "{s} pegatina"),
    "fr": ("{s} acheter en ligne - livraison gratuite", "{s} coloriage", "Photo de {s}", "Autocollant {s}", "{s} pas cher"),
}  # fmt: skip
PAIR = (
    "{s} and {o}", "{s} vs {o}", "{o} and {s}", "{s} with {o}", "{s}, {o}, photo, wallpaper", "From {o} to {s}", "{s} in {o}", "{s} / {o}",
    "{s} next to {o}", "Set of 2: {s} + {o}",
)  # fmt: skip
NOTHING = (
    "image", "IMG_{n}.jpg", "DSC0{n}", "Image may contain: indoor", "Untitled design ({k})", "photo", "Logo", "click to enlarge",
    "New arrivals spring summer 20{k}", "banner-{n}", "Screenshot 2019-0{d}-1{d} at 10.{k}.22", "product image", "Free shipping on orders over $50",
    "default-thumbnail", "Click here to see our full collection", "avatar {n}", "Slide {k} of 40", "no caption available", "Gallery image {k}",
)  # fmt: skip
SHOP = (" | Etsy", " - Redbubble", " | Zazzle", " – eBay", " @ Home24", " | Shutterstock", " - Dreamstime.com", " :: The Toy Shed", " | Pinterest", " - AliExpress")
FILES = ("{s}-300x200.jpg", "{s}_{n}.png", "{s}-{n}-large", "img-{s}-thumb.jpg", "{s}_480x.jpg?v={n}")


@dataclass(frozen=True)
class Caption:
    """An alt-text and what was planted in it."""

    text: str
    mentioned: tuple[str, ...]
    """Ids, in the order of planting."""
    spans: tuple[tuple[str, str], ...]
    """(surface as it stands in the text, id) of each planted mention."""
    colliding: bool
    """The truth is named by a surface that another entity bears too."""


@lru_cache(maxsize=None)
def usable(entity: Entity) -> tuple[str, ...]:
    """Names people write: no codes, no list entries, no brackets."""

    def plain(s: str) -> bool:
        return bool(re.fullmatch(r"[A-Za-z][A-Za-z .'-]{2,34}", s)) and not (s.isupper() and len(s) <= 3 and s not in ("USA",))

    nice = tuple(s for s in entity.surfaces if plain(s)) or (entity.label,)
    # Long official forms and old epithets lie at the end of Wikidata's lists; people use the first ones.
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
