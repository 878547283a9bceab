"""Dump lines to entities and names: a kernel that no line can stop.

Reads    value (string or binary): a line of a Wikidata JSON dump
Writes   entities (RAW_ENTITIES) · names (RAW_NAMES) · rejects (REJECTS) · brackets (BRACKETS); a line is an entity or a
         reject, never both · redirects (REDIRECTS) of lines that say what an item was merged into
Rejects  see reasons.py; the detail is the id, where one could be read, and the parser's words

msgspec decodes into structs that name only what is used, and skips the rest. On lines of 9 kB (Wikidata's mean is 11)
it is 4.6 times as fast as json.loads, and orjson, which makes objects of everything, 2.2 times; the whole kernel, with
names, normal forms and hashes of lines, takes 4.5 times as long as msgspec alone, which is as long as json.loads. On
lines of 29 kB it is 1.6 times as fast as that, on lines of 108 kB 4.5 times (benchmarks/knowledge_base.py). On short
lines the cost per name counts: on lines of 455 bytes the kernel takes 12 times as long as json.loads alone. What
Wikibase may write in two ways is accepted: `[]` for an empty map, snaks without value, statements of unknown form. What
the dump's format forbids is refused: labels that are no strings, alias lists that are no arrays, text that is not
strict UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from operator import attrgetter
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from wikidata.filters import FILTERS, is_human, unwanted
from wikidata.reasons import Reason
from wikidata.schemas import BRACKETS, NAMES, RAW_ENTITIES, RAW_NAMES, REDIRECTS, REJECTS
from wikidata.surface import (
    LANGUAGES,
    acronyms,
    choose_name,
    inadmissible,
    normal_form,
    parts_of_person,
    plain_words,
    short_forms,
    stands_alone,
    unaccented,
    without_qualifier,
)
from wikidata.types import TYPES, UNKNOWN

_MAY_BE_A_PERSON = (UNKNOWN, TYPES.code("person"))
"""What an item without a class may be by its description and its name if it is a person."""
_HAVE_ACRONYMS = tuple(map(TYPES.code, ("organization", "company", "team", "event")))
MAX_ALIASES = 200
"""Aliases kept per entity, in the order of the dump; a few items have tens of thousands."""

LINES = 2048
"""Lines whose rows leave together, at least: making their tables costs as much as two lines of 9 kB do."""

MAX_ID = 2**63 - 1
_ID_IN_LINE = re.compile(rb'"id"\s*:\s*"([A-Za-z][0-9]+)"')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_AROUND = b" \t\r\n,\xef\xbb\xbf"
_BOM = b"\xef\xbb\xbf"
_STATEMENT = b'"mainsnak":'
_SPACED_STATEMENT = re.compile(rb'"mainsnak"\s+:')

V = TypeVar("V")


def _is_id(text: str) -> bool:
    # The length first: int() refuses thousands of digits.
    known = 1 < len(text) <= 20 and text[0] == "Q" and text[1] != "0" and text.isascii() and text[1:].isdecimal()
    return known and (len(text) < 20 or int(text[1:]) <= MAX_ID)


@lru_cache(maxsize=1 << 14)  # the same few classes stand on most lines
def _number(text: str) -> int:
    return int(text[1:]) if _is_id(text) else 0


class _Text(msgspec.Struct, gc=False):
    value: str


class _EntityId(msgspec.Struct, gc=False, rename={"numeric_id": "numeric-id"}):
    id: str = ""
    numeric_id: int = 0

    @property
    def number(self) -> int:
        """Old dumps have only the number, new ones both; 0 where it is no item."""
        return _number(self.id) if self.id else self.numeric_id


class _Monolingual(msgspec.Struct, gc=False):
    text: str
    language: str


class _Value(msgspec.Struct, Generic[V], gc=False):
    value: V


class _Snak(msgspec.Struct, Generic[V], gc=False):
    datavalue: _Value[V] | None = None  # absent for "some value" and "no value"


class _Statement(msgspec.Struct, Generic[V], gc=False):
    mainsnak: _Snak[V]
    rank: str = "normal"


class _Claims(msgspec.Struct, gc=False):
    """The properties that are read; all others are skipped unparsed."""

    P31: Sequence[_Statement[_EntityId]] = ()  # instance of
    P279: Sequence[_Statement[_EntityId]] = ()  # subclass of
    P171: Sequence[_Statement[_EntityId]] = ()  # parent taxon
    P18: Sequence[_Statement[str]] = ()  # image
    P1448: Sequence[_Statement[_Monolingual]] = ()  # official name
    P1813: Sequence[_Statement[_Monolingual]] = ()  # short name
    P1449: Sequence[_Statement[_Monolingual]] = ()  # nickname
    P1843: Sequence[_Statement[_Monolingual]] = ()  # taxon common name
    P1549: Sequence[_Statement[_Monolingual]] = ()  # demonym
    P225: Sequence[_Statement[str]] = ()  # taxon name
    P742: Sequence[_Statement[str]] = ()  # pseudonym
    # Codes: ISO 3166-1 alpha-2/alpha-3/numeric, 3166-2, 639-1/2/3, 4217, IETF tag, FIPS 10-4, character.
    P297: Sequence[_Statement[str]] = ()
    P298: Sequence[_Statement[str]] = ()
    P299: Sequence[_Statement[str]] = ()
    P300: Sequence[_Statement[str]] = ()
    P218: Sequence[_Statement[str]] = ()
    P219: Sequence[_Statement[str]] = ()
    P220: Sequence[_Statement[str]] = ()
    P498: Sequence[_Statement[str]] = ()
    P305: Sequence[_Statement[str]] = ()
    P901: Sequence[_Statement[str]] = ()
    P487: Sequence[_Statement[str]] = ()


_TEXTS = {"P1448": "alias", "P1813": "alias", "P1449": "alias", "P1843": "alias", "P1549": "demonym"}
_STRINGS = {"P225": "alias", "P742": "alias"}
_WHOLE = ("label", "title", "alias")  # names of which a shorter form is looked for
_CODES = ("P297", "P298", "P299", "P300", "P218", "P219", "P220", "P498", "P305", "P901", "P487")
_texts_of = attrgetter(*_TEXTS)
_strings_of = attrgetter(*_STRINGS)
_codes_of = attrgetter(*_CODES)
_NO_CLAIMS = _Claims()


class Item(msgspec.Struct, gc=False):
    """A dump line as it is read. Maps that Wikibase left empty come as {} or []."""

    type: str = ""
    id: str = ""
    redirect: str | None = None
    labels: dict[str, _Text] | tuple[()] = ()
    aliases: dict[str, list[_Text]] | tuple[()] = ()
    descriptions: dict[str, msgspec.Raw] | tuple[()] = ()
    claims: _Claims | tuple[()] = ()
    sitelinks: dict[str, msgspec.Raw] | tuple[()] = ()
    lastrevid: int = 0

    @property
    def revision(self) -> int:
        """The item's revision, 0 where the line has none that could be one."""
        return self.lastrevid if 0 <= self.lastrevid <= MAX_ID else 0


class _LooseItem(msgspec.Struct, gc=False):
    """The least a line must be to count as an item: what is odd inside its maps is left out instead of refused."""

    type: str
    id: str
    redirect: Any = None
    labels: dict[str, _Text] | tuple[()] = ()
    aliases: dict[str, list[Any]] | tuple[()] = ()
    descriptions: dict[str, msgspec.Raw] | tuple[()] = ()
    claims: dict[str, Any] | tuple[()] = ()
    sitelinks: dict[str, msgspec.Raw] | tuple[()] = ()
    lastrevid: Any = 0


class _Kind(msgspec.Struct, gc=False):
    type: Any = None
    id: Any = None
    redirect: Any = None


class _Redirect(msgspec.Struct, gc=False):
    """A dump's line for a merged item: {"entity": "Q1", "redirect": "Q2"}."""

    redirect: str
    entity: str = ""
    id: str = ""


_item = msgspec.json.Decoder(Item)
_redirect = msgspec.json.Decoder(_Redirect)
_loose = msgspec.json.Decoder(_LooseItem)
_kind = msgspec.json.Decoder(_Kind)
_text = msgspec.json.Decoder(_Text)


class _Title(msgspec.Struct, gc=False):
    title: str


_title = msgspec.json.Decoder(_Title)

_FAULTS = (msgspec.MsgspecError, ValueError, RecursionError)  # UnicodeDecodeError is a ValueError


def _is_bare(line: bytes) -> bool:
    """Whether nothing but a comma stands around its object, as on nearly all lines: no copy for each look."""
    return line.startswith(b"{") and line.endswith((b"}", b"},"))


def bare(line: bytes) -> tuple[bytes, bool, bool]:
    """A line without what stands around its JSON object, and whether it opens or closes the array of the dump."""
    if _is_bare(line):
        return line.removesuffix(b","), False, False
    text = line.strip()
    if text.startswith(_BOM):
        text = text[len(_BOM) :].lstrip()
    opens = text.startswith(b"[") and (len(text) == 1 or text[1:].lstrip()[:1] in (b"{", b""))
    if opens:
        text = text[1:].lstrip()
    if text.endswith(b","):
        text = text[:-1].rstrip()
    closes = text.endswith(b"]") and (len(text) == 1 or text[:-1].rstrip()[-1:] == b"}")
    if closes:
        text = text[:-1].rstrip()
    return text, opens, closes


def parse(line: bytes, is_utf8: bool = False) -> Item | tuple[Reason, str]:
    """The item on a dump line, or why there is none and what the parser said. Never raises.

    is_utf8   it is known that the line is UTF-8
    A line is an item when, without surrounding white space, one trailing comma, a byte order mark, and the bracket that
    opens or closes the dump where that shares the line with an item, it is strict UTF-8 and one JSON
    object of type "item" with an id Q1.. below Q2^63, whose maps, where present, are objects or [], whose labels are
    strings and whose alias lists are arrays. A lone surrogate or NaN in a part that is read is refused.
    """
    text, opens, closes = bare(line)
    if not text:
        return (Reason.BRACKET if opens or closes else Reason.BLANK), ""
    try:
        if not is_utf8 and not text.isascii():
            text.decode()  # msgspec checks only the strings that it keeps
        try:
            item = _item.decode(text)
        except msgspec.ValidationError:
            item = _tighten(_loose.decode(text))
    except _FAULTS as fault:
        return _fault(text, fault)
    if item.type != "item" or item.redirect is not None:
        return _not_an_item(item.type, item.redirect), item.id
    if not _is_id(item.id):
        return Reason.BAD_ID, item.id[:40]
    return item


def verdict(line: bytes) -> tuple[str, str | None]:
    """What kind of line it is (a `reasons.Verdict` value) and the id of the item or other entity on it."""
    parsed = parse(line)
    if isinstance(parsed, Item):
        return "valid", parsed.id
    reason, detail = parsed
    return reason.verdict.value, detail if detail and reason.verdict.value == "not an item" else None


def merged(line: bytes) -> tuple[int, int] | None:
    """The item of a redirect's line and the one that it was merged into; None where one of them is no item."""
    try:
        said = _redirect.decode(bare(line)[0])
    except _FAULTS:
        return None
    old = said.entity or said.id
    return (int(old[1:]), int(said.redirect[1:])) if _is_id(old) and _is_id(said.redirect) else None


def _tighten(loose: _LooseItem) -> Item:
    claims: dict[str, list[Any]] = {}
    for name, statements in dict(loose.claims).items():
        if name in _Claims.__struct_fields__ and isinstance(statements, list):
            inner = _Claims.__annotations__[name]
            claims[name] = [s for s in statements if _converts({name: [s]})] if inner else []
    return Item(
        type=loose.type,
        id=loose.id,
        redirect=None if loose.redirect is None else str(loose.redirect),
        labels=loose.labels,
        aliases={
            language: [_Text(a["value"]) for a in texts if isinstance(a, dict) and isinstance(a.get("value"), str)]
            for language, texts in dict(loose.aliases).items()
        },
        descriptions=loose.descriptions,
        claims=msgspec.convert(claims, _Claims),
        sitelinks=loose.sitelinks,
        lastrevid=loose.lastrevid if type(loose.lastrevid) is int else 0,
    )


def _converts(claims: dict[str, Any]) -> bool:
    try:
        msgspec.convert(claims, _Claims)
    except _FAULTS:
        return False
    return True


def _not_an_item(type_: Any, redirect: Any) -> Reason:
    if redirect is not None:
        return Reason.REDIRECT
    if type_ == "property":
        return Reason.PROPERTY
    if type_ == "lexeme":
        return Reason.LEXEME
    return Reason.OTHER_ENTITY_TYPE if type_ else Reason.BAD_SHAPE


def _fault(text: bytes, fault: BaseException) -> tuple[Reason, str]:
    if isinstance(fault, UnicodeDecodeError):
        return Reason.NOT_UTF8, str(fault)
    if not isinstance(fault, msgspec.ValidationError):
        return Reason.NOT_JSON, str(fault)
    try:  # another kind of entity may have another shape: what does it say it is?
        kind = _kind.decode(text)
    except _FAULTS:
        return Reason.BAD_SHAPE, str(fault)
    if kind.redirect is not None or (isinstance(kind.type, str) and kind.type not in ("", "item")):
        return _not_an_item(kind.type, kind.redirect), kind.id if isinstance(kind.id, str) else ""
    if not isinstance(kind.id, str):
        return Reason.BAD_ID, f"id: {kind.id!r}"[:120]
    return Reason.BAD_SHAPE, str(fault)


def statements(line: bytes) -> int:
    """How many statements a dump line has, of any property and rank: what Wikidata itself calls wikibase:statements.

    Each has one key `mainsnak`, and no string of JSON holds its quotation marks as they are. So they are counted in the
    bytes, at some 2 GB/s, and properties that are not read stay unparsed.
    """
    return line.count(_STATEMENT) or len(_SPACED_STATEMENT.findall(line))


def read_items(
    batches: Iterable[pa.RecordBatch],
    languages: Sequence[str] = LANGUAGES,
    filters: Mapping[int, Reason] = FILTERS,
    max_aliases: int = MAX_ALIASES,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Entities, names and rejects of dump lines.

    batches   one column of lines, string or binary (large or not); bytes are taken as they are, valid UTF-8 or not
    yields    ("entities", RAW_ENTITIES), ("names", RAW_NAMES), ("rejects", REJECTS), of lines that open or close the
              array ("brackets", BRACKETS), and of merged items, which are rejects, too, ("redirects", REDIRECTS); of as
              many batches together as have LINES lines, empty ones left out
    Lines = entities + rejects. An id that stands twice is settled by `knowledge_base.without_duplicates`.
    """
    rows = _Rows()
    for batch in batches:
        column = batch.column(0)
        kind = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        column = column if pa.types.is_binary(column.type) else column.cast(kind)
        is_utf8 = _is_utf8(column)
        for line in _each(column):
            line_id = blake2b(line, digest_size=16).digest()
            if not _is_bare(line):
                _, opens, closes = bare(line)
                if opens or closes:
                    rows.brackets.append((opens, closes))
            parsed = parse(line, is_utf8)
            if isinstance(parsed, Item):
                types = classes(parsed)
                reason = unwanted(types, filters)
                if reason is None:
                    row, its_names = describe(parsed, types, languages, max_aliases, statements(line))
                    rows.entities.append((*row, line_id, parsed.revision))
                    rows.names += its_names
                    rows.named.append(len(its_names))
                    continue
                detail = parsed.id
            else:
                reason, said = parsed
                detail = _detail(line, said)
                if reason is Reason.REDIRECT and (ids := merged(line)) is not None:
                    rows.redirects.append(ids)
            rows.rejects.append((reason.value, line_id, detail))
        if len(rows.entities) + len(rows.rejects) >= LINES:
            yield from rows.tables()
            rows = _Rows()
    yield from rows.tables()


@dataclass
class _Rows:
    """What some lines are, row by row."""

    entities: list[tuple[Any, ...]] = field(default_factory=list)
    names: list[tuple[Any, ...]] = field(default_factory=list)
    named: list[int] = field(default_factory=list)
    """How many names each entity has."""
    rejects: list[tuple[Any, ...]] = field(default_factory=list)
    brackets: list[tuple[Any, ...]] = field(default_factory=list)
    redirects: list[tuple[Any, ...]] = field(default_factory=list)

    def tables(self) -> Iterator[tuple[str, pa.RecordBatch]]:
        if self.entities:
            entities = _batch(self.entities, RAW_ENTITIES)
            yield "entities", entities
            if self.names:
                line_ids = entities.column("line_id").take(np.repeat(np.arange(len(self.named)), self.named))
                columns = _batch(self.names, NAMES).columns
                yield "names", pa.RecordBatch.from_arrays([*columns, line_ids], schema=RAW_NAMES)
        for table, rows, schema in (
            ("rejects", self.rejects, REJECTS),
            ("brackets", self.brackets, BRACKETS),
            ("redirects", self.redirects, REDIRECTS),
        ):
            if rows:
                yield table, _batch(rows, schema)


def _batch(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


def _each(lines: pa.Array) -> Iterator[bytes]:
    """The lines of binary or large binary, nulls as empty ones: a third of the time that Arrow's own scalars take."""
    if not len(lines):
        return
    if lines.null_count:
        lines = lines.fill_null(b"")
    _, ends, values = lines.buffers()
    wide = np.int64 if pa.types.is_large_binary(lines.type) else np.int32
    places = np.frombuffer(ends, wide)[lines.offset : lines.offset + len(lines) + 1].tolist()
    data = memoryview(values or b"")
    for start, end in pairwise(places):
        yield bytes(data[start:end])


def _is_utf8(lines: pa.Array) -> bool:
    """Whether all lines are UTF-8: one look of Arrow's takes a tenth of the time of a look at each."""
    try:
        lines.cast(pa.large_string() if pa.types.is_large_binary(lines.type) else pa.string())
    except pa.ArrowInvalid:
        return False
    return True


def _detail(line: bytes, said: str) -> str:
    found = _ID_IN_LINE.search(line[:4096])
    its_id = found.group(1).decode() if found else ""
    said = said.encode("utf-8", "replace").decode()[:120]
    if its_id and its_id not in said:
        return f"{its_id}: {said}" if said else its_id
    return said or line[:120].decode("utf-8", "replace").strip()


def _ranked(statements: Sequence[_Statement[V]]) -> list[V]:
    """Values of the statements of the best rank: the preferred ones where there are any, else the normal ones.

    So Wikidata itself answers ("truthy"): what a country or a museum was before stands beside it in normal rank. A
    preferred statement without a value ("unknown", "none") hides the normal ones as well.
    """
    best = "normal"
    for s in statements:
        if s.rank == "preferred":
            best = "preferred"
            break
    return [s.mainsnak.datavalue.value for s in statements if s.rank == best and s.mainsnak.datavalue is not None]


def classes(item: Item) -> list[int]:
    """What an item is an instance of (P31, of the best rank), in the order of the dump."""
    return _items(item.claims.P31) if item.claims and item.claims.P31 else []


def _items(statements: Sequence[_Statement[_EntityId]]) -> list[int]:
    numbers = [v.number for v in _ranked(statements)]
    return [n for n in dict.fromkeys(numbers) if 0 < n <= MAX_ID]


def describe(
    item: Item,
    types: Sequence[int],
    languages: Sequence[str] = LANGUAGES,
    max_aliases: int = MAX_ALIASES,
    number_of_statements: int = 0,
) -> tuple[tuple[Any, ...], list[tuple[str, str, int, str, str]]]:
    """The row of ENTITIES of an item, and its rows of NAMES, distinct in (normal form, surface), the better kind first.

    The labels of the other languages of the chain are aliases. An alias that is one of the item's codes (ISO 3166, 639,
    4217, a Unicode character) has the kind "code". Derived names follow, under their own kinds: "short" (see
    `short_forms`), "unaccented", and for people, and items of unknown class that look like people, "surname".
    """
    entity_id = int(item.id[1:])
    claims = item.claims or _NO_CLAIMS
    labels: dict[str, str] = {}
    if item.labels:
        for language in languages:
            text = item.labels.get(language)
            if text is not None:
                labels[language] = _clean(text.value)
    title = title_of(item, _site(languages[0]) if languages else "enwiki")
    chosen = choose_name(labels, title, languages)
    if chosen is None and item.labels:  # a label of some other language
        chosen = choose_name({language: _clean(text.value) for language, text in item.labels.items()}, title, languages)
    description = _description(item, languages)
    name, name_language = chosen or (item.id, "")

    surfaces: dict[str, tuple[str, str]] = {}  # surface -> (kind, language), the first wins
    if chosen:
        surfaces[name] = ("label", name_language)
    if title:
        surfaces.setdefault(without_qualifier(title), ("title", languages[0]))
    for language, label in labels.items():
        surfaces.setdefault(label, ("alias", language))
    if any(_strings_of(claims)):
        for p, kind in _STRINGS.items():
            for string in _ranked(getattr(claims, p)):
                surfaces.setdefault(_clean(string), (kind, "mul"))
    aliases: dict[str, str] = {}
    if item.aliases:
        for language in languages:
            for text in item.aliases.get(language, ()):
                aliases.setdefault(_clean(text.value), language)
                if len(aliases) >= max_aliases:
                    break
        codes = {code.casefold() for found in _codes_of(claims) if found for code in _ranked(found)}
        for alias, language in aliases.items():
            surfaces.setdefault(alias, ("code" if codes and alias.casefold() in codes else "alias", language))
    if any(_texts_of(claims)):
        for p, kind in _TEXTS.items():
            for mono in _ranked(getattr(claims, p)):
                if mono.language in languages:
                    surfaces.setdefault(_clean(mono.text), (kind, mono.language))

    names: list[tuple[str, str, int, str, str]] = []
    seen: set[str] = set()
    derivable = []
    human = is_human(types)
    for surface, (kind, language) in surfaces.items():
        if words := plain_words(surface):
            form = surface.lower()
            derives = len(words) > 1 and ((kind == "label" and (human or not types)) or not stands_alone(words))
        else:
            form = normal_form(surface)
            if inadmissible(form) is not None:
                continue
            derives = kind in _WHOLE or not form.isascii()
        names.append((form, surface, entity_id, kind, language))
        seen.add(form)
        if derives:
            derivable.append((form, surface, kind, language))
    for form, surface, kind, language in derivable:
        for other, spelled, its_kind in _derived(form, surface, kind, types, description):
            if other not in seen and inadmissible(other) is None:
                spelled = _excerpt(surface, other) if spelled is None else spelled
                names.append((other, spelled, entity_id, its_kind, language))
                seen.add(other)

    row = (
        entity_id,
        name,
        name_language,
        description,
        [alias for alias in aliases if alias and alias != name],
        list(types),
        _items(claims.P279) + _items(claims.P171) if claims.P279 or claims.P171 else [],
        None,
        len(item.sitelinks),
        number_of_statements,
        None,
        None,
        0,
        bool(claims.P18) and bool(_ranked(claims.P18)),
        TYPES.mean_visual,
        human,
        title or None,
    )
    return row, names


def _derived(
    form: str, surface: str, kind: str, types: Sequence[int], description: str | None
) -> list[tuple[str, str | None, str]]:
    """What else a name is called: normal form, how it is spelled (None: as an excerpt of the surface), kind. They may
    be inadmissible, or stand more than once."""
    whole = kind in _WHOLE
    found: list[tuple[str, str | None, str]] = []
    accented = [] if form.isascii() else [form]
    if whole:
        for short in short_forms(surface, form):
            found.append((short, None, "short"))
            if not short.isascii():
                accented.append(short)
        if "." in form:
            accented.append(normal_form(form.replace(".", "")))
    found += [(unaccented(f), None, "unaccented") for f in accented]
    human = is_human(types)
    if kind == "label" and (human or not types) and (parts := _parts(surface, human, description)):
        parts += [(unaccented(part), its_kind) for part, its_kind in parts]
        found += [(normal_form(part), part, its_kind) for part, its_kind in parts]
    if whole and not human:
        initials = [short for short in acronyms(surface) if _stands_for(surface, short)]
        found += [(normal_form(short), short, "acronym") for short in initials]
    return found


@lru_cache(maxsize=64)
def _site(language: str) -> str:
    """Wikidata's name of the Wikipedia of a language: enwiki for en-gb."""
    return f"{language.partition('-')[0]}wiki"


def _parts(name: str, human: bool, description: str | None) -> list[tuple[str, str]]:
    """The parts of a name that name the item: it is a human by class, or has no class, and neither its description
    ("bicycle brand") nor its name ("Three Gorges Dam") is headed by another kind of thing."""
    parts = parts_of_person(name)
    if not parts or human:
        return parts
    may_be = TYPES.of_text(description) in _MAY_BE_A_PERSON and TYPES.of_text(name) in _MAY_BE_A_PERSON
    return parts if may_be else []


def _stands_for(name: str, acronym: str) -> bool:
    """Whether initials are those of a name by which its kind is known: an organisation's; else of one with a small word
    ("Museum of Modern Art"), for without one it may be a person's. Figures stand for any name."""
    if any(map(str.isdigit, acronym)):
        return True
    return any(w.islower() for w in name.split()) or TYPES.of_text(name) in _HAVE_ACRONYMS


def _excerpt(surface: str, form: str) -> str:
    """How a derived form is written: its part of the surface where it is one, else itself with the surface's kind of
    case."""
    for spelled in (surface, unaccented(surface)):
        small = spelled.lower()
        start = small.find(form)
        if start >= 0 and len(small) == len(spelled):  # U+0130 becomes two, and moves what stands behind it
            return spelled[start : start + len(form)]
    return form.title() if surface[:1].isupper() else form


def _clean(text: str) -> str:
    """Without control characters (an escaped NUL is valid JSON) and outer white space."""
    text = text.strip()
    return text if text.isprintable() else _CONTROL.sub(" ", text).strip()


def title_of(item: Item, site: str) -> str | None:
    """The title of an item's page in a wiki (enwiki), or None where it has none."""
    raw = item.sitelinks.get(site) if item.sitelinks else None
    if raw is None:
        return None
    try:
        return _clean(_title.decode(raw).title)
    except _FAULTS:
        return None


def _description(item: Item, languages: Sequence[str]) -> str | None:
    if item.descriptions:
        for language in languages:
            raw = item.descriptions.get(language)
            if raw is not None:
                try:
                    return _clean(_text.decode(raw).value) or None
                except _FAULTS:
                    continue
    return None
