"""Every table's schema: the contract between stages.

`entity_id` is Wikidata's number (Q42 -> 42). Ids are 128-bit hashes in binary(16). `unit` names the unit of work that
wrote a row and is a column of the folder name, not of the files.
"""

from __future__ import annotations

from enum import Enum

import pyarrow as pa

ID = pa.binary(16)
HASH = pa.binary(32)
"""A perceptual hash (images/decode.py)."""


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(list(fields))


def _key(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


class Reason(str, Enum):
    """Why a row went no further. One name, here, in `rejects`, in the summary, in the report and in the docs.

    Those of dump lines are in wikidata/reasons.py.
    """

    __str__ = str.__str__

    # pairs: rows of the input files
    FILTERED_OUT = "filtered_out"
    NULL_TEXT = "null_text"
    EMPTY_TEXT = "empty_text"
    NO_LETTERS = "no_letters"
    # extract: distinct texts
    NO_MENTION = "no_mention"
    # link: mentions
    NO_CANDIDATE = "no_candidate"
    BELOW_FLOOR = "below_floor"
    # score: pairs
    NO_LINKED_MENTION = "no_linked_mention"
    NULL_IMAGE = "null_image"
    MISSING_IMAGE = "missing_image"
    EMPTY_IMAGE = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED_IMAGE = "truncated_image"
    BROKEN_IMAGE = "broken_image"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    TOO_LONG = "too_long"
    NAN_SCORE = "nan_score"
    # label: pairs
    BELOW_BAR = "below_bar"
    # people, policy, decontaminate, near_duplicates: pairs
    PERSON_ENTITY = "person_entity"
    OTHER_DOMAIN = "other_domain"
    PERSON_PHOTO = "person_photo"
    UNSAFE = "unsafe"
    WATERMARK = "watermark"
    LOW_AESTHETIC = "low_aesthetic"
    UNWANTED = "unwanted"
    EVALUATION_IMAGE = "evaluation_image"
    NEAR_DUPLICATE = "near_duplicate"
    # select: pairs
    DUPLICATE_IMAGE = "duplicate_image"
    RARE_ENTITY = "rare_entity"
    OVER_CAP = "over_cap"
    UNBALANCED = "unbalanced"
    EXCLUDED_URL = "excluded_url"
    EXCLUDED_DOMAIN = "excluded_domain"
    EXCLUDED_IMAGE = "excluded_image"
    EXCLUDED_HASH = "excluded_hash"
    EXCLUDED_ENTITY = "excluded_entity"
    EXCLUDED_LABEL = "excluded_label"


PAIRS = _schema(
    _key("pair_id", ID),
    pa.field("key", pa.string()),
    _key("shard", pa.int32()),
    _key("row", pa.int64()),
    pa.field("url", pa.string()),
    _key("text_id", ID),
)
TEXTS = _schema(
    _key("text_id", ID),
    _key("text", pa.string()),
    _key("script", pa.string()),
    _key("pairs", pa.int64()),
    pa.field("group_id", ID),
)
MENTIONS = _schema(
    _key("text_id", ID),
    _key("start", pa.int32()),
    _key("end", pa.int32()),
    _key("surface", pa.string()),
    _key("normal_form", pa.string()),
    pa.field("label", pa.string()),
    _key("source", pa.string()),
)
CANDIDATES = _schema(
    _key("text_id", ID),
    _key("start", pa.int32()),
    _key("end", pa.int32()),
    _key("entity_id", pa.int64()),
    _key("prior", pa.float32()),
    _key("probability", pa.float32()),
    _key("rank", pa.int32()),
)
RERANKED = CANDIDATES.append(pa.field("first_probability", pa.float32(), nullable=False)).append(
    pa.field("score", pa.float32())
)
WIDER = _schema(
    _key("text_id", ID),
    _key("start", pa.int32()),
    _key("end", pa.int32()),
    _key("entity_id", pa.int64()),
    _key("wider_of", pa.int64()),
    _key("steps", pa.int32()),
)
CANDIDATE_VECTORS = _schema(
    _key("entity_id", pa.int64()),
    _key("vector", pa.list_(pa.float32())),
)
ENTITY_VECTORS = _schema(
    _key("entity_id", pa.int64()),
    _key("vector", pa.list_(pa.float32())),
    _key("described", pa.bool_()),
    _key("name_vector", pa.list_(pa.float32())),
    pa.field("description_vector", pa.list_(pa.float32())),
    pa.field("coarse_type", pa.string()),
    _key("visual", pa.float32()),
    pa.field("fame", pa.float32()),
)
SCORES = _schema(
    _key("pair_id", ID),
    _key("entity_id", pa.int64()),
    _key("image_id", ID),
    _key("shard", pa.int32()),
    _key("row", pa.int64()),
    _key("clip_score", pa.float32()),
    pa.field("background_z", pa.float32()),
    _key("described", pa.bool_()),
    pa.field("name_z", pa.float32()),
    pa.field("description_z", pa.float32()),
    pa.field("type_z", pa.float32()),
    pa.field("type_gap", pa.float32()),
    pa.field("vocabulary_gap", pa.float32()),
    pa.field("description_gap", pa.float32()),
    pa.field("visual", pa.float32()),
    pa.field("fame", pa.float32()),
    _key("width", pa.int32()),
    _key("height", pa.int32()),
    pa.field("image_hash", HASH),
)
IMAGE_VECTORS = _schema(
    _key("shard", pa.int32()),
    _key("row", pa.int64()),
    _key("image_id", ID),
    _key("width", pa.int32()),
    _key("height", pa.int32()),
    _key("image_hash", HASH),
    _key("named", pa.bool_()),
    _key("vector", pa.binary()),
)
"""`named`: the image lies in a file that the row names, and not in the shard. `vector`: norm 1, float16, little-endian;
Spark has no type for half floats."""
LABELS = _schema(
    _key("image_id", ID),
    _key("pair_id", ID),
    _key("shard", pa.int32()),
    _key("row", pa.int64()),
    _key("width", pa.int32()),
    _key("height", pa.int32()),
    _key("entity_id", pa.int64()),
    _key("clip_score", pa.float32()),
    _key("text_probability", pa.float32()),
    _key("probability", pa.float32()),
    pa.field("mention", pa.string()),
    pa.field("reason", pa.string()),
)
IMAGE_LABELS = pa.list_(
    pa.struct(
        [
            ("entity_id", pa.int64()),
            ("class_index", pa.int32()),
            ("score", pa.float32()),
            ("clip_score", pa.float32()),
            ("mention", pa.string()),
        ]
    )
)
"""`score` is the probability that the label is right; `mention` the words of the text that proposed it."""
SELECTION = _schema(
    _key("image_id", ID),
    _key("pair_id", ID),
    _key("shard", pa.int32()),
    _key("row", pa.int64()),
    _key("width", pa.int32()),
    _key("height", pa.int32()),
    _key("labels", IMAGE_LABELS),
    _key("hides_held_out", pa.bool_()),
)
"""`hides_held_out`: none of the published labels is of a held-out entity, and one is that is not published."""
IMAGES = _schema(
    _key("image_id", pa.string()),
    pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
    pa.field("url", pa.string()),
    _key("alt_text", pa.string()),
    _key("width", pa.int32()),
    _key("height", pa.int32()),
    pa.field("key", pa.string()),
    _key("pair_id", pa.string()),
    pa.field("perceptual_hash", pa.string()),
    _key("split", pa.string()),
    _key("labels", IMAGE_LABELS),
)
"""Ids and hashes in hex digits, as every reader of tables can show and compare them."""
_OF_KNOWLEDGE_BASE = (
    pa.field("types", pa.list_(pa.string())),
    pa.field("coarse_type", pa.string()),
    pa.field("sitelinks", pa.int32()),
    pa.field("popularity", pa.float64()),
    pa.field("is_human", pa.bool_()),
    pa.field("wikipedia_title", pa.string()),
)
"""What readers of the dataset want to know of an entity: `types` are the names of its classes (P31)."""
I2E_ENTITIES = _schema(
    _key("class_index", pa.int32()),
    _key("entity_id", pa.int64()),
    _key("name", pa.string()),
    pa.field("description", pa.string()),
    pa.field("aliases", pa.list_(pa.string())),
    _key("images", pa.int64()),
    _key("pairs_proposed", pa.int64()),
    _key("pairs_labelled", pa.int64()),
    pa.field("mean_clip_score", pa.float32()),
    pa.field("mean_probability", pa.float32()),
    *_OF_KNOWLEDGE_BASE,
    _key("split", pa.string()),
    _key("retired", pa.bool_()),
)
_VIEW = pa.struct([*((name, pa.float32()) for name in ("left", "top", "right", "bottom")), ("mirrored", pa.bool_())])
REINFORCED = _schema(
    _key("image_id", pa.string()),
    pa.field("augmentations", pa.list_(_VIEW)),
    pa.field("image_vectors", pa.binary()),
    pa.field("captions", pa.list_(pa.string())),
    _key("text_vectors", pa.binary()),
    pa.field("reason", pa.string()),
)
"""Edges are shares of the image's sides as displayed. `image_vectors`: of each augmentation in turn the vectors of all
teachers in turn, `text_vectors` the same of the alt-text and of each caption; norm 1 each, float16, little-endian.
`reason`: why the image could not be decoded, and has no augmentations, image vectors and captions; else null."""
REINFORCED_ENTITIES = _schema(
    _key("class_index", pa.int32()),
    _key("name_vectors", pa.binary()),
    pa.field("described_vectors", pa.binary()),
)
"""`described_vectors`: of name and description as one text; null where the entity has no description."""
_QUANTILES = pa.struct([(name, pa.float32()) for name in ("p05", "p25", "p50", "p75", "p95")])
"""Each is the least thousandth that this share of the scores, to the nearest thousandth, does not exceed."""


def _most_frequent(name: str, counted: str) -> pa.ListType:
    """The most frequent values and how often each is counted: most often first, then by value."""
    return pa.list_(pa.struct([(name, pa.string()), (counted, pa.int64())]))


ENTITY_DETAILS = _schema(
    pa.field("texts", pa.int64()),
    pa.field("mentions", pa.int64()),
    pa.field("mentions_first", pa.int64()),
    pa.field("scripts", _most_frequent("script", "mentions")),
    pa.field("clip_scores", _QUANTILES),
    pa.field("clip_scores_labelled", _QUANTILES),
    pa.field("surfaces", _most_frequent("surface", "pairs")),
    pa.field("domains", _most_frequent("domain", "pairs")),
    pa.field("distinct_domains", pa.int64()),
    pa.field("confusions", pa.list_(pa.struct([("entity_id", pa.int64()), ("won", pa.int64()), ("lost", pa.int64())]))),
)
"""What `select.statistics=full` adds to the statistics of an entity; null in older outputs and with `basic`."""
ENTITY_STATISTICS = _schema(
    _key("entity_id", pa.int64()),
    pa.field("class_index", pa.int32()),
    _key("name", pa.string()),
    pa.field("description", pa.string()),
    pa.field("aliases", pa.list_(pa.string())),
    _key("images", pa.int64()),
    _key("pairs_proposed", pa.int64()),
    _key("pairs_labelled", pa.int64()),
    pa.field("mean_clip_score", pa.float32()),
    pa.field("mean_clip_score_labelled", pa.float32()),
    pa.field("mean_probability", pa.float32()),
    *_OF_KNOWLEDGE_BASE,
    pa.field("retired", pa.bool_()),
    *ENTITY_DETAILS,
)
BUCKETS = _schema(
    _key("images_from", pa.int64()),
    _key("images_to", pa.int64()),
    _key("entities", pa.int64()),
    _key("images", pa.int64()),
)
FUNNEL = _schema(
    _key("position", pa.int32()),
    _key("stage", pa.string()),
    _key("rows_are", pa.string()),
    _key("rows_in", pa.int64()),
    _key("rows_out", pa.int64()),
    pa.field("reason", pa.string()),
    _key("rejected", pa.int64()),
)
REJECTS = _schema(
    _key("reason", pa.string()),
    pa.field("id", ID),
    pa.field("shard", pa.int32()),
    pa.field("row", pa.int64()),
    pa.field("start", pa.int32()),
    pa.field("end", pa.int32()),
    pa.field("detail", pa.string()),
)
