"""Clean alt-text, name it by its content, and say which script it is in.

Reads    rows of the input files (shard, row, pair_id, key, url, caption)
Writes   pairs (pair_id, key, shard, row, url, text_id) · texts (text_id, text, script, pairs)
Rejects  null_text · empty_text · no_letters

The web's alt-text is escaped twice, decoded with the wrong table, wrapped in CSV quotes, or a file name. What a reader
would see is kept, as NFC with single blanks; everything later (ids, mentions, links) is about that cleaned text. Most
texts need none of this: one regular expression over the whole column finds the rows that do, so that only those cost
Python (benchmarks/extract.py).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import regex
from ftfy.badness import is_bad

from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.rejects import reject
from i2e_pipeline.core.schemas import ID, PAIRS, TEXTS, Reason
from i2e_pipeline.core.scripts import scripts

MAX_CHARACTERS = 1000
"""Default bound of a cleaned text, in characters."""

Spans = npt.NDArray[np.int32]
"""Shape (characters, 2): where each character of a cleaned text starts and ends in the text that it was cleaned
from."""

_EXTENSION = r"\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic)"
_ENTITY = re.compile(
    r"&(?:#\d{1,7};?|#[xX][0-9a-fA-F]{1,6};?|[A-Za-z][A-Za-z0-9]{1,31};|(?:amp|nbsp|quot|lt|gt)(?![A-Za-z=]))"
)
_CONTINUATION = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[\xc2-\xdf]{_CONTINUATION}|[\xe0-\xef]{_CONTINUATION}{{2}}|[\xf0-\xf4]{_CONTINUATION}{{3}}")
_COMMENT = re.compile(
    r"<!--.{0,5000}?-->|<(script|style)\b[^<>]{0,500}>.{0,5000}?</\1\s{0,9}>", re.IGNORECASE | re.DOTALL
)
_INLINE_TAG = re.compile(
    r"</?(?:a|abbr|b|big|em|font|i|mark|s|small|span|strong|sub|sup|u)(?:\s[^<>]{0,2000})?/?>", re.IGNORECASE
)
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9:-]{0,30}(?:\s[^<>]{0,2000})?/?>")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
    "|(?<![\u0590-\u1fff])[\u200c\u200d]"  # joiners mean something in Arabic and Indic scripts only
)
_FILE_NAME = re.compile(rf"[^\s\"<>|]{{1,300}}(?={_EXTENSION}\b)", re.IGNORECASE)
_FILE_EXTENSION = re.compile(rf"(?<=[\w)\]]){_EXTENSION}\b", re.IGNORECASE)
_HYPHEN_IN_NAME = re.compile(r"(?<=\w)[-+](?=\w)")
_ESCAPED_BLANK = re.compile(r"%20|_+")
_DOUBLED_QUOTE = re.compile('"{2,}')
_OUTER_QUOTE = re.compile(r'\A"|"\Z')
_BLANKS = re.compile(r"\s{2,}|[^\S ]")
_OUTER_BLANK = re.compile(r"\A | \Z")
_CLUSTER = regex.compile(r"\X")

# What RE2 must not find in a text that is clean as it stands. Latin-1 letters that could be half of a wrongly decoded
# character stay on the slow side only where another such character follows.
_NEEDS_WORK = (
    r"[^\x20-\x7e\xa1-\xac\xae-\x{2ff}\x{370}-\x{373}\x{376}\x{377}\x{37a}-\x{37d}\x{400}-\x{482}\x{48a}-\x{52f}"
    r"\x{2010}-\x{2027}\x{2030}-\x{205e}\x{3001}-\x{3029}\x{3041}-\x{3096}\x{309d}-\x{30ff}\x{4e00}-\x{9fff}\x{ac00}-\x{d7a3}]"
    r"|[\xc2-\xf4][\xa1-\xac\xae-\xbfŒœŠšŽžŸƒˆ˜‚„…†‡‰‹›‘’“”•–—™€]"
    r"|  |\A[ \"]|[ \"]\z|&[#A-Za-z]|<[A-Za-z/!]|_|%20|\"\"|(?i:\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic))"
)
_LETTER = r"\pL"
_NO_TEXT = pa.array(["", "nan", "none", "null", "n/a", "<na>", "undefined"])


def clean(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """The text as a reader sees it: entities, wrong encodings, tags, control characters, file-name dress and surplus
    blanks undone; NFC; at most `max_characters`, cut at a word's end. Never raises, whatever the string holds."""
    return _clean(text, max_characters, None)[0]


def clean_with_offsets(text: str, max_characters: int = MAX_CHARACTERS) -> tuple[str, Spans]:
    """The same string as `clean`, and for each of its characters where it stood in `text`.

    Returns (cleaned, spans of shape (len(cleaned), 2)): cleaned[i] was made from text[spans[i, 0]:spans[i, 1]].
    A mention cleaned[start:end] is original[spans[start, 0]:spans[end - 1, 1]].
    """
    before = np.arange(len(text) + 1, dtype=np.int32)
    cleaned, spans = _clean(text, max_characters, np.stack([before[:-1], before[1:]], axis=1))
    assert spans is not None
    return cleaned, spans


def _clean(text: str, max_characters: int, spans: Spans | None) -> tuple[str, Spans | None]:
    # Whatever follows is linear in what is kept here: megabytes of text cost no more than some kilobytes.
    text, spans = _cut(text, spans, 16 * max_characters)
    for _ in range(4):
        if "&" not in text:
            break
        before = text
        text, spans = _substitute(_ENTITY, _unescape, text, spans)
        if text == before:
            break
    for _ in range(3):
        if text.isascii() or not is_bad(text):
            break
        before = text
        text, spans = _substitute(_MOJIBAKE, _decode_again, text, spans)
        if text == before:
            break
    if "<" in text:
        text, spans = _substitute(_COMMENT, " ", text, spans)
        text, spans = _substitute(_INLINE_TAG, "", text, spans)
        text, spans = _substitute(_TAG, " ", text, spans)
    text, spans = _substitute(_INVISIBLE, "", text, spans)
    if not unicodedata.is_normalized("NFC", text):
        # Grapheme clusters never interact under NFC, so each can be composed, and mapped, by itself.
        text, spans = _substitute(_CLUSTER, _compose, text, spans)
    text, spans = _substitute(_DOUBLED_QUOTE, '"', text, spans)
    if "." in text:
        text, spans = _substitute(_FILE_NAME, _open_file_name, text, spans)
        text, spans = _substitute(_FILE_EXTENSION, " ", text, spans)
    text, spans = _substitute(_ESCAPED_BLANK, " ", text, spans)
    text, spans = _substitute(_BLANKS, " ", text, spans)
    text, spans = _substitute(_OUTER_BLANK, "", text, spans)
    if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2:
        text, spans = _substitute(_OUTER_QUOTE, "", text, spans)
        text, spans = _substitute(_OUTER_BLANK, "", text, spans)
    if len(text) > max_characters:
        end = text.rfind(" ", 0, max_characters + 1)
        text, spans = _cut(text, spans, end if end > 0 else max_characters)
    return text, spans


def _cut(text: str, spans: Spans | None, end: int) -> tuple[str, Spans | None]:
    return text[:end], None if spans is None else spans[:end]


def _substitute(
    pattern: re.Pattern[str] | regex.Pattern[str],
    replacement: str | Callable[[re.Match[str]], str],
    text: str,
    spans: Spans | None,
) -> tuple[str, Spans | None]:
    """`pattern.sub`, carrying spans along: a replacement of the same length maps character by character, any other
    maps as a whole."""
    if spans is None:
        return pattern.sub(replacement, text), None
    words: list[str] = []
    places: list[Spans] = []
    last = 0
    for match in pattern.finditer(text):
        start, end = match.span()
        put = replacement if isinstance(replacement, str) else replacement(match)
        words += text[last:start], put
        places.append(spans[last:start])
        if len(put) == end - start:
            places.append(spans[start:end])
        elif put:
            places.append(np.repeat(np.array([[spans[start, 0], spans[end - 1, 1]]], dtype=np.int32), len(put), axis=0))
        last = end
    if not words:
        return text, spans
    words.append(text[last:])
    places.append(spans[last:])
    return "".join(words), np.concatenate(places)


def _unescape(match: re.Match[str]) -> str:
    return html.unescape(match[0])


def _decode_again(match: re.Match[str]) -> str:
    """A sequence of UTF-8 that was decoded as Windows-1252 or Latin-1, decoded as UTF-8; any other as it is."""
    octets = bytearray()
    for character in match[0]:
        try:
            octets += character.encode("latin-1")
        except UnicodeEncodeError:
            octets += character.encode("cp1252")
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


def _compose(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFC", match[0])


def _open_file_name(match: re.Match[str]) -> str:
    return _HYPHEN_IN_NAME.sub(" ", match[0])


def text_id(texts: pa.Array, group_ids: pa.Array | None = None) -> pa.Array:
    """The first 128 bits of BLAKE2b of each text's UTF-8, as binary(16), and of its group's id before it where it is in
    a group: what a text means may depend on that. Nulls stay null."""
    contents = texts.cast(pa.binary()).to_pylist()
    groups = [None] * len(contents) if group_ids is None else group_ids.to_pylist()
    return pa.array(
        [None if text is None else content_id((of or b"") + text) for text, of in zip(contents, groups, strict=True)],
        ID,
    )


def clean_column(captions: pa.Array, max_characters: int = MAX_CHARACTERS) -> pa.Array:
    """`clean` of each of a string (or binary) array. Nulls stay null; bytes that are no UTF-8 become U+FFFD."""
    captions = _valid(captions)
    # A megabyte of text is cut before it is searched; 16 is what `_clean` keeps.
    captions = pc.utf8_slice_codeunits(captions, 0, 16 * max_characters)
    work = pc.or_(pc.match_substring_regex(captions, _NEEDS_WORK), pc.greater(pc.utf8_length(captions), max_characters))
    work = pc.fill_null(work, False)
    dirty = pc.filter(captions, work)
    if not len(dirty):
        return captions
    return pc.replace_with_mask(
        captions, work, pa.array([_clean(text, max_characters, None)[0] for text in dirty.to_pylist()], pa.string())
    )


def _valid(captions: pa.Array) -> pa.Array:
    if isinstance(captions, pa.ChunkedArray):
        captions = captions.combine_chunks()
    if pa.types.is_dictionary(captions.type):
        captions = captions.dictionary_decode()
    try:
        captions = captions.cast(pa.string())
        captions.validate(full=True)
        return captions
    except (pa.ArrowInvalid, UnicodeDecodeError):
        octets = captions.cast(pa.binary(), safe=False).to_pylist()
        return pa.array([None if o is None else o.decode("utf-8", "replace") for o in octets], pa.string())


def read_texts(
    batches: Iterable[pa.RecordBatch], max_characters: int = MAX_CHARACTERS
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Clean each row's caption and name the text by its content.

    batches   shard: int32, row: int64, pair_id: binary(16), key: string?, url: string?, caption: string?, and where
              texts are grouped group: string?
    yields    ("pairs", PAIRS) a row per usable input row;
              ("texts", TEXTS) a row per distinct text, and group, of the batch, `pairs` counting its rows in this
              batch;
              ("rejects", reason, id = pair_id, shard, row, detail) with detail the caption's first 80 characters.
    """
    for batch in batches:
        captions = _valid(batch.column("caption"))
        texts = clean_column(captions, max_characters)
        reasons = pc.case_when(
            pc.make_struct(
                pc.is_null(texts),
                pc.fill_null(pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(texts)), _NO_TEXT), False),
                pc.fill_null(pc.invert(pc.match_substring_regex(texts, _LETTER)), False),
            ),
            pa.scalar(Reason.NULL_TEXT.value),
            pa.scalar(Reason.EMPTY_TEXT.value),
            pa.scalar(Reason.NO_LETTERS.value),
            pa.scalar(None, pa.string()),
        )
        refused = pc.is_valid(reasons)
        kept = pc.invert(refused)
        texts = pc.filter(texts, kept)
        groups = pc.filter(batch.column("group"), kept) if "group" in batch.schema.names else pa.nulls(len(texts))
        distinct, of_group, places = _distinct(texts, groups)
        group_ids = text_id(of_group)
        ids = text_id(distinct, group_ids)
        yield (
            "pairs",
            pa.RecordBatch.from_arrays(
                [
                    ids.take(places)
                    if field.name == "text_id"
                    else pc.filter(batch.column(field.name), kept).cast(field.type)
                    for field in PAIRS
                ],
                schema=PAIRS,
            ),
        )
        counts = np.bincount(places.to_numpy(zero_copy_only=False), minlength=len(distinct)).astype(np.int64)
        yield (
            "texts",
            pa.RecordBatch.from_arrays(
                [ids, distinct, scripts(distinct), pa.array(counts, pa.int64()), group_ids], schema=TEXTS
            ),
        )
        if pc.any(refused).as_py():
            why, said = pc.filter(reasons, refused), pc.utf8_slice_codeunits(pc.filter(captions, refused), 0, 80)
            yield "rejects", reject(batch, refused, why, said, key="pair_id")


def _distinct(texts: pa.Array, groups: pa.Array) -> tuple[pa.Array, pa.Array, pa.Array]:
    """The distinct pairs of a text and its group, and for each row the place of its pair."""
    if groups.null_count == len(groups):
        coded = texts.dictionary_encode()
        return coded.dictionary, pa.nulls(len(coded.dictionary), pa.string()), coded.indices
    of_text, of_group = texts.dictionary_encode().indices, groups.dictionary_encode().indices.fill_null(-1)
    both = of_text.to_numpy(zero_copy_only=False) * np.int64(len(texts) + 1) + of_group.to_numpy(zero_copy_only=False)
    _, first, places = np.unique(both, return_index=True, return_inverse=True)
    return texts.take(pa.array(first)), groups.take(pa.array(first)), pa.array(places)
