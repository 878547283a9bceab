"""Pages of Wikipedia's XML to links and running text: a kernel that no page can stop.

Reads    value (binary): a piece of `pages-articles.xml` that ends where `</page>` stood
Writes   pages (PAGES), a row for each page and for each piece without one; a row that is no article has a reason
Rejects  see PageReason

What is a link and what is text is said of running text: templates, references, headings, formulas and code are neither,
so that linked / (linked + unlinked) compares like with like (Mihalcea & Csomai, CIKM 2007). Table cells, lists and
captions are running text. Where a link or something left out stood, no name goes across (`BREAK`).

The scanner is one regular expression that finds brackets and braces, and a stack. It is no parser: what MediaWiki does
with bad nesting is met where that decides what readers see (of links in one another the inner one is a link), and a
bracket that is never closed is text. Every step is linear in the page, whatever stands in it. mwparserfromhell
0.7, which builds the tree of all that wikitext can be, takes 16 times as long (benchmarks/anchors.py).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pyarrow as pa

from wikidata.filters import unwanted
from wikidata.items import Item, classes, parse, title_of
from wikidata.reasons import Reason
from wikidata.surface import without_qualifier

SEPARATOR = "</page>"
"""What ends a record. It stands in no text, where it would be `&lt;/page&gt;`."""

MAX_BYTES = 8 << 20
"""Longer pages are rejected unread. MediaWiki refuses to save 2 MB of wikitext; markup and escapes come on top."""

MAX_SURFACE = 255
"""Characters of a link's text; longer ones name nothing."""
_LONG = 2000
"""Characters of a target, with its fragment and percent signs, of which no link has more."""

BATCH_BYTES = 16 << 20
"""Text that leaves in one batch, about."""

PAGES = pa.schema(
    [
        pa.field("site", pa.string(), nullable=False),  # the wiki's name, as Wikidata's sitelinks have it: enwiki
        pa.field("title", pa.string()),
        pa.field("redirect", pa.string()),  # the title that it leads to
        pa.field("links", pa.list_(pa.struct([("surface", pa.string()), ("target", pa.string())])), nullable=False),
        pa.field("text", pa.string()),  # running text without links
        pa.field("reason", pa.string()),  # a PageReason; null: an article that was read
        pa.field("detail", pa.string()),
    ]
)

TITLES = pa.schema(
    [
        pa.field("site", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("entity_id", pa.int64(), nullable=False),
    ]
)

LINES = pa.schema([pa.field("reason", pa.string(), nullable=False), pa.field("lines", pa.int64(), nullable=False)])
"""How many lines of a dump were what: a `reasons.Reason`, or "item"."""


class PageReason(str, Enum):
    """Why a record has no links and no text; the value is what stands in the table."""

    FRAME = "frame"
    OTHER_NAMESPACE = "other_namespace"
    OTHER_MODEL = "other_model"
    REDIRECT = "redirect"
    DISAMBIGUATION = "disambiguation"
    CUT = "cut"
    BAD_XML = "bad_xml"
    NOT_UTF8 = "not_utf8"
    NO_TITLE = "no_title"
    NO_NAMESPACE = "no_namespace"
    NO_TEXT = "no_text"
    TOO_LONG = "too_long"

    @property
    def malformed(self) -> bool:
        """Is something wrong with the page? The others are what a dump has, and are no articles."""
        return self not in (
            PageReason.FRAME,
            PageReason.OTHER_NAMESPACE,
            PageReason.OTHER_MODEL,
            PageReason.REDIRECT,
            PageReason.DISAMBIGUATION,
        )


SENTENCES = {
    PageReason.FRAME: "What stands before the first page and behind the last.",
    PageReason.OTHER_NAMESPACE: "No article: a template, a category, a file, a talk page.",
    PageReason.OTHER_MODEL: "Its text is no wikitext: JSON, CSS, Lua.",
    PageReason.REDIRECT: "It leads to another page; links to it count for that one.",
    PageReason.DISAMBIGUATION: "It lists what a name may mean, and is nothing that a link could mean.",
    PageReason.CUT: "The page ends in its middle.",
    PageReason.BAD_XML: "No well-formed XML, or no page.",
    PageReason.NOT_UTF8: "Bytes that are no UTF-8.",
    PageReason.NO_TITLE: "It has no title, or one that no page can have.",
    PageReason.NO_NAMESPACE: "It does not say of which namespace it is.",
    PageReason.NO_TEXT: "It has no text.",
    PageReason.TOO_LONG: f"Longer than {MAX_BYTES >> 20} MB, which no page of MediaWiki is.",
}
"""Each reason in a sentence."""


def _words(text: str) -> Sequence[str]:
    return tuple(text.split())


# --- the wiki -------------------------------------------------------------------------------------------------------

_FILE, _CATEGORY = 6, 14
_CANONICAL = {
    "media": -2, "special": -1, "talk": 1, "user": 2, "user talk": 3, "project": 4, "project talk": 5, "file": _FILE,
    "image": _FILE, "file talk": 7, "image talk": 7, "mediawiki": 8, "mediawiki talk": 9, "template": 10,
    "template talk": 11, "help": 12, "help talk": 13, "category": _CATEGORY, "category talk": 15, "portal": 100,
    "wikipedia": 4, "wikipedia talk": 5, "wp": 4, "wt": 5, "draft": 118, "timedtext": 710, "module": 828,
}  # fmt: skip
"""Names of namespaces that work in every Wikipedia; the local ones stand in its dump."""
_INTERWIKI = _words(
    """b wikibooks c commons d wikidata f wikifunctions m meta metawikipedia mw mediawikiwiki n wikinews q wikiquote s
    wikisource species wikispecies v wikiversity voy wikivoyage w wikt wiktionary foundation incubator outreach phab
    phabricator bugzilla doi google imdbname imdbtitle iarchive rfc pmid toollabs tools"""
)
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[a-z]{2,})*|simple|be-x-old|roa-rup)\Z")
_IMAGE = re.compile(r"\.(?:jpe?g|png|gif|svg|tiff?|webp|xcf|djvu|pdf|og[agv]|webm|flac|wav|mp3|midi?|stl)\s*\Z", re.I)


@dataclass(frozen=True)
class Site:
    """A Wikipedia, as the head of its dump describes it."""

    name: str
    """As sitelinks have it: enwiki."""
    namespaces: Mapping[str, int]
    """Name in small letters, with blanks, to number."""
    first_letter: bool = True
    """Whether titles begin with a capital whatever a link has."""

    @property
    def language(self) -> str:
        return self.name.removesuffix("wiki").replace("_", "-")


_DBNAME = re.compile(r"<dbname>\s*([\w-]+?)\s*</dbname>")
_NAMESPACE = re.compile(r"<namespace\s[^>]*?key=\"(-?\d+)\"[^>]*>([^<]+)</namespace>")
_NAMED_BY_FILE = re.compile(r"([a-z]{2,}(?:_[a-z]+)*wiki)-")


def site_of(head: str, path: str) -> Site | None:
    """The wiki of a dump, by its first characters, else by its file's name; None where neither tells."""
    named = _DBNAME.search(head) or _NAMED_BY_FILE.match(path.replace("\\", "/").rpartition("/")[2])
    if named is None:
        return None
    local = {_prefix_key(html.unescape(name)): int(key) for key, name in _NAMESPACE.findall(head)}
    return Site(named[1].replace("-", "_"), {**_CANONICAL, **local}, "<case>case-sensitive</case>" not in head)


def _prefix_key(text: str) -> str:
    return " ".join(text.replace("_", " ").split()).lower()


_NO_TITLE = re.compile(r"[\[\]{}|<>\n\x00-\x1f\x7f\ufffd]")
_INVISIBLE = dict.fromkeys((0x200E, 0x200F, *range(0x202A, 0x202F)))
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")


@lru_cache(maxsize=1 << 16)
def title(text: str, first_letter: bool = True) -> str | None:
    """The title that a link's target means, without fragment, as MediaWiki stores it; None where no page can be so
    called."""
    if "%" in text and _PERCENT.search(text):
        text = unquote(text)
    if "&" in text:
        text = html.unescape(text)
    text = text.partition("#")[0]
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
    text = " ".join(text.replace("_", " ").split())
    if not text or len(text.encode("utf-8", "replace")) > 255 or _NO_TITLE.search(text):
        return None
    if first_letter and len(text[0].upper()) == 1:
        text = text[0].upper() + text[1:]
    return text


# --- wikitext -------------------------------------------------------------------------------------------------------

BREAK = " | "
"""Stands in a text where no name may go across. No title has the character in it."""
_BREAK, _NOTHING = "\x01", "\x02"  # XML has no such characters, so no page has
MARK = "\x03{}\x04{}\x05"
"""How a link stands in a text that is asked for with its links."""
_TOKEN = re.compile(r"(\[\[(?!\[)|\]\]|\{\{|\}\})")
_DEEP = 16
"""Captions in one another that are followed."""

_LEFT_OUT = _words(
    """ref references math chem ce code source syntaxhighlight pre score timeline imagemap templatedata graph mapframe
    maplink hiero inputbox categorytree includeonly templatestyles section indicator"""
)
_OPENS = re.compile(rf"<(?:!--|(nowiki|gallery|{'|'.join(_LEFT_OUT)})(?=[\s/>])([^<>]*)>)", re.IGNORECASE)
_CLOSES = {tag: re.compile(rf"</{tag}\s*>", re.IGNORECASE) for tag in ("nowiki", "gallery", *_LEFT_OUT)}
_HEADING = re.compile(r"^=.*=[ \t]*$", re.MULTILINE)
_LITERAL = str.maketrans("[]{}|<>=*#:;!'_", " " * 15)
_FILE_HEAD = re.compile(r"\s*([^\[\]{}|:\n]{1,40}):([^|\n]*)\|")
_OPTION = re.compile(
    r"\s*(?:[\w-]{1,20}\s*=|(?:thumb|thumbnail|mini|frame|framed|frameless|border|left|right|center|none|upright|"
    r"\d*x?\d+px)\s*\Z)"
)
"""What is no caption, of the parts of an image's link."""
_LOWER = "".join(c for c in map(chr, range(0x250)) if c.islower()) + "α-ωά-ώа-яѐ-џґա-և"
_TRAIL = re.compile(f"[{_LOWER}]+")
_QUOTES = re.compile(r"''+")
_TAGS = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]*)[^<>]*>")
_LINES_APART = _words("br hr p div li ul ol dl dd dt td th tr table blockquote center h1 h2 h3 h4 h5 h6")
_MARKED = re.compile(r"['<&\[\]{}\x01\x02\n\t_]")


def scan(wikitext: str, site: Site, own: str | None = None, marked: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """The running text of a page without its links, and its links to articles: (surface, title of the target).

    own     the page's title: a link to it is none
    marked  the links' surfaces stay in the text, each in a MARK with its place among the links
    Never raises, and takes time in proportion to the length.
    """
    text = _HEADING.sub("", _without_extensions(wikitext.replace("{{!}}", "|")))
    parts = _TOKEN.split(text)
    out = [parts[0]]
    links: list[tuple[str, str]] = []
    # Of what is open: whether it is a link, from where its content stands in `out`, how many links were before it,
    # how deep in captions it lies.
    stack: list[tuple[bool, int, int, int]] = []
    templates = 0
    for place in range(1, len(parts), 2):
        token, after = parts[place], parts[place + 1]
        if token == "[[":
            deep = 0
            if stack and stack[-1][0]:
                deep = stack[-1][3] + 1
                if deep > _DEEP or not _is_file(out[stack[-1][1]], site):
                    stack.pop()  # a link with a link in it is none
                    deep -= 1
            stack.append((True, len(out), len(links), deep))
        elif token == "]]":
            if stack and stack[-1][0]:
                _, start, _, _ = stack.pop()
                content = out[start] if start == len(out) - 1 else "".join(out[start:])
                del out[start:]
                if after[:1] == "]" and content.count("[") > content.count("]"):
                    content, after = content + "]", after[1:]
                shown, link = _link(content, site)
                if link is not None:
                    if trail := _TRAIL.match(after):
                        link, after = (link[0] + trail[0], link[1]), after[trail.end() :]
                    if link[1] != own:
                        links.append(link)
                        shown = MARK.format(len(links) - 1, link[0]) if marked else shown
                    elif marked:
                        shown = link[0]
                out.append(shown)
        elif token == "{{":
            stack.append((False, len(out), len(links), 0))
            templates += 1
        elif templates:
            is_link = True
            while is_link:
                is_link, start, before, _ = stack.pop()
            del out[start:], links[before:]
            out.append(_BREAK)
            templates -= 1
        out.append(after)
    return _plain("".join(out)), links


def _is_file(content: str, site: Site) -> bool:
    """Does the content of a link begin as that of an image with a caption?"""
    head = _FILE_HEAD.match(content)
    return head is not None and (site.namespaces.get(_prefix_key(head[1])) == _FILE or bool(_IMAGE.search(head[2])))


def _link(content: str, site: Site) -> tuple[str, tuple[str, str] | None]:
    """What stands in the text for a link, and its surface and target where that is an article."""
    target, piped, label = content.partition("|")
    if len(target) > _LONG or _NO_TITLE.search(target) or not target.strip():
        return content, None
    target = unquote(target).strip() if "%" in target else target.strip()
    colon = target[0] == ":"
    if colon:
        target = target[1:].lstrip()
    head, prefixed, rest = target.partition(":")
    if prefixed:
        prefix = _prefix_key(head)
        namespace = site.namespaces.get(prefix)
        if not colon and (namespace == _FILE or (piped and namespace is None and _IMAGE.search(rest))):
            caption = content.rpartition("|")[2] if piped else ""
            caption = "" if _OPTION.match(caption) else caption
            return f"{_BREAK}{caption}{_BREAK}", None
        if not colon and (namespace == _CATEGORY or (namespace is None and _LANGUAGE.match(head))):
            return "", None
        if namespace is not None or prefix in _INTERWIKI or _LANGUAGE.match(head):
            return _BREAK, None
    page = title(target, site.first_letter)
    if page is None:
        return _BREAK, None
    if not piped:
        label = target.replace("_", " ")
    elif not label.strip():  # the pipe trick
        label = without_qualifier(target.replace("_", " ")).partition(", ")[0]
    surface = shown(label)
    return _BREAK, (surface, page) if 0 < len(surface) <= MAX_SURFACE else None


def shown(label: str) -> str:
    """A link's text as a reader sees it; "" where that cannot be told, or is nothing."""
    if _MARKED.search(label):
        if _BREAK in label:
            return ""
        label = _TAGS.sub("", _QUOTES.sub("", label)).replace(_NOTHING, "")
        label = html.unescape(label) if "&" in label else label
        label = "".join(c for c in label if c >= " " or c.isspace())
    return " ".join(label.split())


def _without_extensions(text: str) -> str:
    """Without comments and without the tags whose content is no wikitext that readers see as text."""
    found = _OPENS.search(text) if "<" in text else None
    if found is None:
        return text
    pieces: list[str] = []
    place = 0
    unclosed: set[str] = set()
    while found is not None:
        pieces.append(text[place : found.start()])
        place = found.end()
        tag = (found[1] or "").lower()
        if not tag:
            end = text.find("-->", place)
            place = end + 3 if end >= 0 else len(text)
        elif found[2].endswith("/"):
            pieces.append(_NOTHING)
        elif tag not in unclosed:  # of one that is never closed the tag alone goes; and it is looked for once
            if end_tag := _CLOSES[tag].search(text, place):
                pieces.append(_instead(tag, text[place : end_tag.start()]))
                place = end_tag.end()
            else:
                unclosed.add(tag)
        found = _OPENS.search(text, place)
    pieces.append(text[place:])
    return "".join(pieces)


def _instead(tag: str, content: str) -> str:
    if tag == "nowiki":
        return _NOTHING + content.translate(_LITERAL) + _NOTHING
    if tag == "gallery":
        return "\n".join(["", *(line.partition("|")[2] for line in content.split("\n")), ""])
    return "" if tag == "ref" else _BREAK


_TABLE_LINE = re.compile(r"^[ \t:]*(?:\{\||\|[-}]).*$", re.MULTILINE)
_CELL = re.compile(r"(?:^[ \t]*[|!]\+?|\|\||!!)(?:[^|\n\[]*\|(?!\|))?", re.MULTILINE)
_LIST = re.compile(r"^[*#:;]+", re.MULTILINE)
_EXTERNAL = re.compile(
    r"\[(?:[a-z]{3,6}:)?//[^\[\]\n]*\]|\[mailto:[^\[\]\n]*\]|(?:https?|ftp)://[^\s<>\[\]\x01]*", re.I
)
_SWITCH = re.compile(r"__[A-Z]{3,}__")
_APART = re.compile(r"[\x01\n]+")


def _apart(tag: re.Match[str]) -> str:
    return _BREAK if tag[1].lower() in _LINES_APART else ""


def _plain(text: str) -> str:
    """Text without the marks of lines, tables, quotes and tags; what no name goes across is `BREAK`."""
    if "{|" in text:
        text = _CELL.sub(_BREAK, _TABLE_LINE.sub("", text))
    text = _LIST.sub("", text)
    if "//" in text or "mailto:" in text:
        text = _EXTERNAL.sub(_BREAK, text)
    if "<" in text:
        text = _TAGS.sub(_apart, text)
    text = _QUOTES.sub("", text).replace(_NOTHING, "")
    if "__" in text:
        text = _SWITCH.sub("", text)
    if "&" in text:
        text = html.unescape(text)
    return BREAK.join(line for piece in _APART.split(text) if (line := " ".join(piece.split())))


# --- pages ----------------------------------------------------------------------------------------------------------

_PAGE = re.compile(rb"<page(?:\s[^<>]*)?>")
_FRAME = re.compile(rb"\s*(?:</mediawiki>\s*)?\Z|.*<(?:siteinfo|mediawiki)\b", re.DOTALL)
_REDIRECT = re.compile(
    r"\s*#(?:redirect\w*|weiterleitung|redirección|rinvia|doorverwijzing|patrz|przekieruj|redirecionamento|"
    r"перенаправление|転送|リダイレクト|重定向)\s*:?\s*\[\[([^\[\]|\n]+)",
    re.IGNORECASE,
)
_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:disambig(?:uation)?|disamb|dab|(?:hn|geo|human name |place name )dis(?:ambiguation)?|begriffsklärung|"
    r"homonymie|desambiguación|desambiguação|desambig|disambigua|dp|förgrening|ujednoznacznienie|неоднозначность|"
    r"многозначность|aimai|曖昧さ回避|disambig-\w+)\s*[|}]|__DISAMBIG__",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Page:
    """A page of a dump, not yet read; or why there is none."""

    title: str | None = None
    text: str = ""
    redirect: str | None = None
    reason: PageReason | None = None
    detail: str | None = None


def pages_of(record: bytes, site: Site, max_bytes: int = MAX_BYTES) -> Iterator[Page]:
    """The pages of a record: one, or several where the ends of some are missing; never none."""
    starts = [found.start() for found in _PAGE.finditer(record)]
    if not starts:
        reason = PageReason.FRAME if _FRAME.match(record) else PageReason.BAD_XML
        yield Page(reason=reason, detail=_excerpt(record))
        return
    for start, end in zip(starts, [*starts[1:], len(record)], strict=True):
        yield _page(record[start:end], site, max_bytes)


def _page(record: bytes, site: Site, max_bytes: int) -> Page:
    if len(record) > max_bytes:
        return Page(reason=PageReason.TOO_LONG, detail=f"{_excerpt(record)}: {len(record):,} bytes")
    try:
        page = ElementTree.fromstring(record + SEPARATOR.encode())
    except (ElementTree.ParseError, ValueError) as error:
        return Page(reason=_broken(record), detail=f"{_excerpt(record)}: {error}")
    name = title(page.findtext("title") or "", site.first_letter)
    if name is None:
        return Page(reason=PageReason.NO_TITLE, detail=_excerpt(record))
    namespace = (page.findtext("ns") or "").strip()
    if not namespace.lstrip("-").isdecimal():
        return Page(name, reason=PageReason.NO_NAMESPACE, detail=f"ns: {namespace[:40]!r}")
    if int(namespace[:9]):
        return Page(name, reason=PageReason.OTHER_NAMESPACE)
    revision = page.findall("revision")[-1:]  # of several the last is the page as it stands
    text = (revision[0].findtext("text") or "") if revision else ""
    led = page.find("redirect")
    said = _REDIRECT.match(text) if led is None else None
    if led is not None or said is not None:
        target = led.get("title", "") if led is not None else said[1] if said is not None else ""
        return Page(name, redirect=_article(target, site), reason=PageReason.REDIRECT)
    model = (revision[0].findtext("model") or "wikitext") if revision else "wikitext"
    if model != "wikitext":
        return Page(name, reason=PageReason.OTHER_MODEL, detail=model[:40])
    if not text.strip():
        return Page(name, reason=PageReason.NO_TEXT)
    if _DISAMBIGUATION.search(text):
        return Page(name, reason=PageReason.DISAMBIGUATION)
    return Page(name, text)


def _broken(record: bytes) -> PageReason:
    try:
        record.decode()
    except UnicodeDecodeError as error:
        if error.end < len(record) or error.reason != "unexpected end of data":
            return PageReason.NOT_UTF8
    return PageReason.BAD_XML if record.rstrip().endswith((b"</revision>", b"</upload>")) else PageReason.CUT


def _article(target: str, site: Site) -> str | None:
    """The title of an article, or None for what is none."""
    prefix, prefixed, _ = target.partition(":")
    if prefixed and _prefix_key(prefix) in site.namespaces:
        return None
    return title(target, site.first_letter)


_ITS_TITLE = re.compile(rb"<title>([^<]{1,300})")


def _excerpt(record: bytes) -> str:
    found = _ITS_TITLE.search(record[:4096])
    said = found[1] if found else record.strip()[:80]
    return " ".join(said.decode("utf-8", "replace").split())


def read_pages(
    batches: Iterable[pa.RecordBatch], site: Site, max_bytes: int = MAX_BYTES, batch_bytes: int = BATCH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Links and running text of each page.

    batches   one column of records (binary): what stands between two `</page>`
    yields    PAGES, in the order of the records, of about `batch_bytes` of text each; a record gives at least one row
    """
    rows: list[tuple[Any, ...]] = []
    held = 0
    for batch in batches:
        for scalar in batch.column(0):
            for page in pages_of(scalar.as_py() or b"", site, max_bytes):
                text, links = scan(page.text, site, page.title) if page.reason is None else (None, [])
                rows.append((site.name, page.title, page.redirect, links, text, page.reason, page.detail))
                held += len(text or "") + 64 * len(links)
                if held > batch_bytes:
                    yield _batch(rows)
                    rows, held = [], 0
        if rows:
            yield _batch(rows)
            rows, held = [], 0


def sentences(
    wikitext: str, site: Site, own: str | None = None, most: int = 300
) -> Iterator[tuple[str, list[tuple[int, int, str]]]]:
    """The sentences of a page that have links: each with (start, end, title of the target) of its links.

    own   the page's title: a link to it is none
    most  characters of a sentence; longer ones are left out
    Of a sentence that a table, a template or markup cuts through, the piece without it counts.
    """
    text, links = scan(wikitext.translate(_UNMARKED), site, own, marked=True)
    for piece in text.split(BREAK):
        for sentence in _SENTENCES.split(piece):
            parts = _MARKS.split(sentence)
            found, plain = [], ""
            for place in range(0, len(parts), 3):
                plain += parts[place]
                if place + 2 < len(parts):
                    surface = parts[place + 2]
                    found.append((len(plain), len(plain) + len(surface), links[int(parts[place + 1])][1]))
                    plain += surface
            if found and len(plain) <= most:
                yield plain, found


_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_]|\x03)(?![^\x03]*\x05)")
_UNMARKED = dict.fromkeys((3, 4, 5))
_MARKS = re.compile("\x03([0-9]+)\x04([^\x03-\x05]*)\x05")


def _batch(rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
    sites, titles, redirects, links, texts, reasons, details = zip(*rows, strict=True)
    surfaces = pa.array([surface for each in links for surface, _ in each], pa.string())
    targets = pa.array([target for each in links for _, target in each], pa.string())
    offsets = [0]
    for each in links:
        offsets.append(offsets[-1] + len(each))
    pairs = pa.StructArray.from_arrays([surfaces, targets], fields=[*PAGES.field("links").type.value_type])
    columns = [pa.array(c, pa.string()) for c in (sites, titles, redirects)]
    columns.append(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pairs))
    columns += [pa.array(texts, pa.string()), pa.array([r and r.value for r in reasons], pa.string())]
    return pa.RecordBatch.from_arrays([*columns, pa.array(details, pa.string())], schema=PAGES)


# --- titles ---------------------------------------------------------------------------------------------------------

_NO_TARGET = (Reason.DISAMBIGUATION, Reason.CATEGORY, Reason.TEMPLATE, Reason.WIKIMEDIA_PAGE)


def read_titles(batches: Iterable[pa.RecordBatch], sites: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """To which items the pages of these wikis belong, of lines of a Wikidata dump.

    batches   one column of lines, string or binary
    yields    ("titles", TITLES), and how many lines were what: ("lines", LINES). Items of disambiguation pages,
              categories and the like, which nothing is named after, have no titles here, and are counted by why
    """
    for batch in batches:
        rows: list[tuple[str, str, int]] = []
        counts: dict[str, int] = {}
        column = batch.column(0)
        for scalar in column if pa.types.is_binary(column.type) else column.cast(pa.binary()):
            item = parse(scalar.as_py() or b"")
            if isinstance(item, Item):
                why = unwanted(classes(item))
                what = why.value if why in _NO_TARGET and why is not None else "item"
                if what == "item":
                    number = int(item.id[1:])
                    found = ((site, title_of(item, site)) for site in sites)
                    rows += [(site, name, number) for site, name in found if name]
            else:
                what = item[0].value
            counts[what] = counts.get(what, 0) + 1
        if rows:
            columns = [pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), TITLES, strict=True)]
            yield "titles", pa.RecordBatch.from_arrays(columns, schema=TITLES)
        if counts:
            arrays = [pa.array([*counts], pa.string()), pa.array([*counts.values()], pa.int64())]
            yield "lines", pa.RecordBatch.from_arrays(arrays, schema=LINES)
