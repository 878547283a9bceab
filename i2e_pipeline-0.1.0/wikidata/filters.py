"""Which items are no entities for us, and which entities no picture can show. Both look at P31 (instance of) only.

Items about the wikis themselves and scholarly articles are more than 30 % of Wikidata's items, and most of its useless
names. Given and family names are names, not things. `FILTERS` maps class -> reason, and a caller may pass another map.
`visual` is a first version: an entity without P31 may be anything, so it counts as visual, and only classes that are
plainly abstract (a language, an award, a border) are not. Subclasses (P279) are not followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from wikidata.reasons import Reason

HUMAN = 5

FILTERS: Mapping[int, Reason] = {
    **dict.fromkeys((13442814, 18918145, 7318358, 580922, 1348305, 45182324), Reason.SCHOLARLY_ARTICLE),
    **dict.fromkeys((4167836, 24046192, 15647814, 20010800, 30432511), Reason.CATEGORY),
    **dict.fromkeys((4167410, 22808320), Reason.DISAMBIGUATION),
    13406463: Reason.LIST,
    **dict.fromkeys((11266439, 19887878, 11753321, 19842659), Reason.TEMPLATE),
    **dict.fromkeys(
        (4663903, 14204246, 15184295, 17362920, 21286738, 17442446, 16695773, 17633526), Reason.WIKIMEDIA_PAGE
    ),
    **dict.fromkeys((202444, 12308941, 11879590, 3409032, 101352, 29042997, 66480858), Reason.NAME),
}
"""Class -> why its instances are dropped."""

NOT_VISUAL: Set[int] = frozenset(
    (
        34770, 1288568, 25295, 45762, 38058796, 33742, 33384, 8192,  # languages, dialects, writing systems
        28640, 12737077, 4164871, 294414, 17279032, 56019, 171318,  # professions, positions, ranks, kinship
        11862829, 4671286, 189533, 268592, 151885, 1047113,  # disciplines, degrees, industries, concepts
        15221623, 133346, 12413618, 15104814, 3089219, 15238777,  # relations between states, borders, terms
        618779, 38033430, 60754876,  # awards and their classes
        223393, 188451, 201658,  # genres
        17272692, 12143, 577, 39911, 578, 47018901, 36507,  # time zones, years, decades, centuries, dates
        11563, 12503, 21199, 47574, 1790144,  # numbers, units
        7366, 134556, 105543609,  # songs, singles, compositions
        24017414, 19361238, 15617994,  # classes of classes
    )
)  # fmt: skip
"""Classes whose instances cannot be recognised in a picture."""


def unwanted(types: Iterable[int], filters: Mapping[int, Reason] = FILTERS) -> Reason | None:
    """Why an item of these classes (P31) is dropped, or None; the first class that is listed decides."""
    for type_ in types:
        reason = filters.get(type_)
        if reason is not None:
            return reason
    return None


def is_visual(types: Iterable[int], not_visual: Set[int] = NOT_VISUAL) -> bool:
    """Can a picture show it? True unless one of its classes is listed as abstract."""
    return not_visual.isdisjoint(types)


def is_human(types: Iterable[int]) -> bool:
    """Is it a person, and no figure of fiction? (P31 is Q5.)"""
    return HUMAN in types
