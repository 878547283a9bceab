"""Why a line of the dump is no entity of ours. One name per reason, the same in code, tables and reports."""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """What kind of line it is, before our own filters: the four answers that a reader of dumps can give."""

    VALID = "valid"
    INVALID = "invalid"
    NOT_AN_ITEM = "not an item"
    NOT_AN_ENTITY = "not an entity"


class Reason(str, Enum):
    """Why a line was rejected; the value is what stands in `rejects.reason`."""

    BRACKET = "bracket"
    """`[` or `]`: the dump is one JSON array with an entity a line."""
    BLANK = "blank"
    """Empty, or white space only."""
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    """No JSON document, or more than one, or nested deeper than the parser goes."""
    BAD_SHAPE = "bad_shape"
    """JSON, but not an entity: not an object, or a part of it has another type than Wikibase gives it."""
    BAD_ID = "bad_id"
    """Not Q and a positive number below 2^63."""
    PROPERTY = "property"
    LEXEME = "lexeme"
    REDIRECT = "redirect"
    OTHER_ENTITY_TYPE = "other_entity_type"
    DUPLICATE_ID = "duplicate_id"
    """Another line with this id is kept: the one of the highest revision."""
    SCHOLARLY_ARTICLE = "scholarly_article"
    CATEGORY = "category"
    DISAMBIGUATION = "disambiguation"
    LIST = "list"
    TEMPLATE = "template"
    WIKIMEDIA_PAGE = "wikimedia_page"
    """Portals, project pages, modules, duplicates: pages about the projects themselves."""
    NAME = "name"
    """A given or family name: it stands for whoever bears it, and would win every "John"."""

    @property
    def verdict(self) -> Verdict:
        """The kind of line behind the reason; filtered and duplicate items are valid lines."""
        if self in (Reason.BRACKET, Reason.BLANK):
            return Verdict.NOT_AN_ENTITY
        if self in (Reason.PROPERTY, Reason.LEXEME, Reason.REDIRECT, Reason.OTHER_ENTITY_TYPE):
            return Verdict.NOT_AN_ITEM
        if self in (Reason.NOT_UTF8, Reason.NOT_JSON, Reason.BAD_SHAPE, Reason.BAD_ID):
            return Verdict.INVALID
        return Verdict.VALID
