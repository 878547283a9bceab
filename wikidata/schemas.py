"""The tables that leave `wikidata`. `entity_id` is Wikidata's number (Q42 -> 42); a normal form is
`surface.normal_form`'s.

`ENTITIES`, `NAMES` and `SURFACES` are the contract with the code that links. The two `RAW_*` tables hold what one pass
over the dump can know: they carry the line that a row comes from, so that an id that stands twice can be settled later.
"""

from __future__ import annotations

import pyarrow as pa

ENTITIES = pa.schema(
    [
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),  # the id itself ("Q8") where Wikidata has no usable label
        pa.field("name_language", pa.string(), nullable=False),  # "" where the name is the id, "title" for a page title
        pa.field("description", pa.string()),
        pa.field("aliases", pa.list_(pa.string()), nullable=False),
        pa.field("types", pa.list_(pa.int64()), nullable=False),  # P31, of the best rank alone
        pa.field("parents", pa.list_(pa.int64()), nullable=False),  # P279 and P171, of the best rank alone
        pa.field("coarse_type", pa.string()),  # a name of types.yaml; null: unknown
        pa.field("sitelinks", pa.int32(), nullable=False),
        pa.field("statements", pa.int32(), nullable=False),  # of any property and rank
        pa.field("popularity", pa.float64()),  # null: unknown, which is not 0
        pa.field("fame", pa.float32()),  # knowledge_base.with_fame; 0: nobody knows it; null: unknown
        pa.field("name_case", pa.int8(), nullable=False),  # 1: a word for things, -1: a proper name, 0: no telling
        pa.field("has_image", pa.bool_(), nullable=False),  # P18
        pa.field(
            "visual", pa.float32(), nullable=False
        ),  # of photographs that name one of its type, those that show it
        pa.field("is_human", pa.bool_(), nullable=False),  # P31 Q5
        pa.field("wikipedia_title", pa.string()),  # of the page in the first language; null: none, or not known
    ]
)

NAMES = pa.schema(
    [
        pa.field("normal_form", pa.string(), nullable=False),
        pa.field("surface", pa.string(), nullable=False),
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # a Kind of priors.py
        pa.field("language", pa.string(), nullable=False),
    ]
)

CANDIDATE = pa.struct(
    [
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("prior", pa.float32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
    ]
)

SURFACES = pa.schema(
    [
        pa.field("normal_form", pa.string(), nullable=False),
        pa.field("candidates", pa.list_(CANDIDATE), nullable=False),  # falling prior, then entity_id
        pa.field("link_probability", pa.float32(), nullable=False),
        pa.field("forms", pa.list_(pa.string()), nullable=False),  # distinct raw surfaces, sorted
        pa.field("gazetteer", pa.bool_(), nullable=False),  # may be looked for in running text
    ]
)

REJECTS = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),
        pa.field("id", pa.binary(16), nullable=False),  # blake2b-128 of the raw line
        pa.field("detail", pa.string()),
    ]
)

_LINE = [
    pa.field("line_id", pa.binary(16), nullable=False),  # blake2b-128 of the raw line
    pa.field("revision", pa.int64(), nullable=False),  # lastrevid; 0 where the dump has none
]
RAW_ENTITIES = pa.schema([*ENTITIES, *_LINE])
RAW_NAMES = pa.schema([*NAMES, _LINE[0]])
BRACKETS = pa.schema(
    [
        pa.field("opens", pa.bool_(), nullable=False),
        pa.field("closes", pa.bool_(), nullable=False),
    ]
)
"""A row for each line that opens or closes the JSON array which a dump is."""

REDIRECTS = pa.schema(
    [
        pa.field("entity_id", pa.int64(), nullable=False),  # of an item that was merged into another one
        pa.field("into", pa.int64(), nullable=False),
    ]
)
CHANGES = pa.schema(
    [
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("change", pa.string(), nullable=False),  # added, changed, removed or merged
        pa.field("into", pa.int64()),  # what a merged one is now
    ]
)

ANCHORS = pa.schema(
    [
        pa.field("normal_form", pa.string(), nullable=False),
        pa.field("surface", pa.string(), nullable=False),
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),  # links with this text to this entity
        pa.field("unlinked", pa.int64()),  # times the surface, of whichever entity, was no link; null: not counted
    ]
)
POPULARITY = pa.schema(
    [
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("popularity", pa.float64(), nullable=False),  # any scale: in-degree, page views, importance
    ]
)
