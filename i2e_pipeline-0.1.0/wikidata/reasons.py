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


SENTENCES = {
    Reason.BRACKET: "The bracket that opens or closes the dump: a dump is one JSON array, an entity a line.",
    Reason.BLANK: "A line of the dump that is empty.",
    Reason.NOT_UTF8: "A line of the dump that is not UTF-8.",
    Reason.NOT_JSON: "A line of the dump that is not one JSON document.",
    Reason.BAD_SHAPE: "JSON, but not shaped as an entity.",
    Reason.BAD_ID: "Its identifier is not Q and a positive number.",
    Reason.PROPERTY: "A property, not an item.",
    Reason.LEXEME: "A lexeme: a word, not a thing.",
    Reason.REDIRECT: "An item that was merged into another one.",
    Reason.OTHER_ENTITY_TYPE: "An entity of a kind that is neither item, property nor lexeme.",
    Reason.DUPLICATE_ID: "Another line has the same identifier and a later revision.",
    Reason.SCHOLARLY_ARTICLE: "A scholarly article: tens of millions of titles that no photograph shows.",
    Reason.CATEGORY: "A category page of a Wikimedia project.",
    Reason.DISAMBIGUATION: "A disambiguation page: a name and not a thing.",
    Reason.LIST: "A list page.",
    Reason.TEMPLATE: "A template page.",
    Reason.WIKIMEDIA_PAGE: "A page about a Wikimedia project: portal, module, help.",
    Reason.NAME: "A given or family name: it stands for whoever bears it, and would win every “John”.",
}
"""Each reason in a sentence, for a reader who has not seen the code."""
