"""Which items are no entities for us, by P31 (instance of) alone.

Items about the wikis themselves and scholarly articles are more than 30 % of Wikidata's items, and most of its useless
names. Given and family names are names, not things. `FILTERS` maps class -> reason, and a caller may pass another map.
What a picture can show is told by coarse types (types.py), which leave no item out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


def unwanted(types: Iterable[int], filters: Mapping[int, Reason] = FILTERS) -> Reason | None:
    """Why an item of these classes (P31) is dropped, or None; the first class that is listed decides."""
    for type_ in types:
        reason = filters.get(type_)
        if reason is not None:
            return reason
    return None


def is_human(types: Iterable[int]) -> bool:
    """Is it a person, and no figure of fiction? (P31 is Q5.)"""
    return HUMAN in types
