"""What stages and reasons are called in the report: one sentence each, for a reader who has not seen the code."""

from __future__ import annotations

from collections.abc import Mapping

from i2e_pipeline.core.schemas import Reason
from wikidata.reasons import Reason as LineReason

STAGES: Mapping[str, str] = {
    "knowledge_base": "reads the Wikidata dump",
    "surfaces": "gives every name its entities, with priors",
    "pairs": "reads the input, cleans the texts",
    "extract": "finds what the texts name",
    "link": "asks which entities each name can mean",
    "entity_vectors": "encodes the entities' texts",
    "score": "looks at each image beside its candidates",
    "label": "chooses labels by text and image together",
    "select": "merges duplicates, drops rare entities, caps frequent ones",
    "publish": "writes the kept images",
    "finish": "writes entities, statistics and manifest",
}
"""In the order of the walk."""

REASONS: Mapping[str, str] = {
    Reason.NULL_TEXT: "The row has no alt-text at all, so nothing proposes an entity.",
    Reason.EMPTY_TEXT: "Nothing is left of the alt-text once markup, white space and control characters are gone.",
    Reason.NO_LETTERS: "The alt-text has no letter in any script: only digits, prices or punctuation.",
    Reason.NO_MENTION: "Neither the recogniser nor the gazetteer finds a name in the text.",
    Reason.NO_CANDIDATE: "The name is in no entity's list of names, in any of the languages that are read.",
    Reason.BELOW_FLOOR: "The name is known, but no entity is a likely enough reading of it here.",
    Reason.NO_LINKED_MENTION: "No name in the pair's text leads to an entity: nothing to score the image against.",
    Reason.NULL_IMAGE: "The row has a text but no image.",
    Reason.EMPTY_IMAGE: "The image is stored with zero bytes, as after a download that failed.",
    Reason.NOT_AN_IMAGE: "The stored bytes are of no image format: an error page, for the most part.",
    Reason.TRUNCATED_IMAGE: "The image ends before its own header says it should.",
    Reason.BROKEN_IMAGE: "The bytes begin as an image and the decoder cannot finish them.",
    Reason.TOO_MANY_BYTES: "The stored image is larger than the limit and is not read.",
    Reason.TOO_MANY_PIXELS: "The header announces more pixels than the limit: decoding it could exhaust the memory.",
    Reason.TOO_SMALL: "The shorter side is below the limit: icons, spacers and tracking pixels.",
    Reason.TOO_LONG: "The image is many times longer than wide, or the reverse: banners and rulers.",
    Reason.NAN_SCORE: "The model gave no number for this image.",
    Reason.BELOW_BAR: "No candidate is likely enough to be right, with what text and image say taken together.",
    Reason.DUPLICATE_IMAGE: "The same image came with another pair, which stands for both; their labels were merged.",
    Reason.RARE_ENTITY: "Its only entities have too few images to be a class.",
    Reason.OVER_CAP: "Its entities have more images than the cap, and the draw by hash left this one out.",
    LineReason.BRACKET: "The bracket that opens or closes the dump: a dump is one JSON array, an entity a line.",
    LineReason.BLANK: "A line of the dump that is empty.",
    LineReason.NOT_UTF8: "A line of the dump that is not UTF-8.",
    LineReason.NOT_JSON: "A line of the dump that is not one JSON document.",
    LineReason.BAD_SHAPE: "JSON, but not shaped as an entity.",
    LineReason.BAD_ID: "Its identifier is not Q and a positive number.",
    LineReason.PROPERTY: "A property, not an item.",
    LineReason.LEXEME: "A lexeme: a word, not a thing.",
    LineReason.REDIRECT: "An item that was merged into another one.",
    LineReason.OTHER_ENTITY_TYPE: "An entity of a kind that is neither item, property nor lexeme.",
    LineReason.DUPLICATE_ID: "Another line has the same identifier and a later revision.",
    LineReason.SCHOLARLY_ARTICLE: "A scholarly article: tens of millions of titles that no photograph shows.",
    LineReason.CATEGORY: "A category page of a Wikimedia project.",
    LineReason.DISAMBIGUATION: "A disambiguation page: a name and not a thing.",
    LineReason.LIST: "A list page.",
    LineReason.TEMPLATE: "A template page.",
    LineReason.WIKIMEDIA_PAGE: "A page about a Wikimedia project: portal, module, help.",
    LineReason.NAME: "A given or family name: it stands for whoever bears it, and would win every “John”.",
}


def explain(reason: str) -> str:
    """The sentence of a reason; of one that is not known here, its name in words."""
    return REASONS.get(reason, reason.replace("_", " ").capitalize() + ".")
