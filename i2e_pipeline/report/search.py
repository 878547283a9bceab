"""Search: every published entity by name, alias and Q-id, in a page that is opened from the disk and asks no server.

Reads    i2e/entities
Writes   the rows themselves, inside the page; of many entities, <output>/report_entities/<digest>/: pages of sorted
         keys, as scripts, since a page from the disk may load scripts and may read no other file

A key is what somebody may type, folded (`folded`; find.js folds the same way): a name, what follows in it after a blank
(`washington` finds George Washington), an alias, a Q-id. A page holds PAGE_KEYS of them in their order, each with its
whole row, so that most queries cost one page. What begins too many keys (`m`, `q1`) has the entities with the most
images of all that it begins, chosen beforehand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from i2e_pipeline.core import files
from i2e_pipeline.report.figures import Dataset

FOLDER = "report_entities"
INLINE_BYTES = 600_000
"""Of rows inside the page, some 4,000 entities: the page stays below three megabytes with its pictures."""
_SHORTEST_ROW = 24
_LAYOUT = 1
"""Of the files; another number makes the next report write them anew."""
MAX_ENTITIES = 2_000_000
"""Entities that can be found, those with the most images: half a kilobyte each."""
PAGE_KEYS = 3_000
SHOWN = 24
"""Hits that the page lists."""
MAX_KEY = 40
"""Letters of a key that are compared."""
_ALIASES = 12
_WORDS = 4
"""Words of a name at which a key begins."""
_DESCRIPTION = 90
_TOPS_IN_A_FILE = 100
_COLUMNS = (
    "entity_id",
    "name",
    "description",
    "aliases",
    "images",
    "mean_probability",
    "mean_clip_score",
    "coarse_type",
)


@dataclass(frozen=True)
class Search:
    """What the page embeds: all rows, or a directory of the pages beside it."""

    embedded: Markup
    """JSON for a script element. `rows`, each [entity_id, name, description, type, images, mean probability, CLIP
    score, aliases]; or `folder`, `firsts` (the first key of each page) and `tops` (what begins too many keys → number
    of its file)"""
    entities: int
    """that can be found"""
    of: int
    folder: str = ""
    """Beside the page, named by what is in it; "" where the rows are inside the page."""
    pages: _Pages | None = field(default=None, compare=False)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of what lies in the folder, one after the other."""
        yield from self.pages.scripts() if self.pages else ()


def search(entities: pa.Table, inline_bytes: int | None = None) -> Search:
    """The search over entities that have images.

    entities       the columns of `i2e/entities` that _COLUMNS names
    inline_bytes   rows of more bytes lie beside the page; None: INLINE_BYTES
    """
    inline_bytes = INLINE_BYTES if inline_bytes is None else inline_bytes
    found = entities.filter(pc.greater(entities.column("images"), 0))
    found = found.sort_by([("images", "descending"), ("entity_id", "ascending")]).slice(0, MAX_ENTITIES)
    of = int(pc.sum(pc.greater(entities.column("images"), 0)).as_py() or 0)
    if found.num_rows * _SHORTEST_ROW <= inline_bytes:
        embedded = as_script({"rows": [row for part in _rows(found) for row in part]})
        if len(embedded.encode()) <= inline_bytes:
            return Search(Markup(embedded), found.num_rows, of)
    digest = hashlib.blake2b(repr((_LAYOUT, PAGE_KEYS, SHOWN)).encode(), digest_size=8)
    for part in _rows(found):
        digest.update(json.dumps(part).encode())
    pages, folder = _Pages.of(found), f"{FOLDER}/{digest.hexdigest()}"
    embedded = as_script({"folder": folder, "firsts": pages.firsts, "tops": pages.tops})
    return Search(Markup(embedded), found.num_rows, of, folder, pages)


def _rows(entities: pa.Table) -> Iterator[list[list[Any]]]:
    """The rows of `Search.embedded`, in parts."""
    for batch in entities.to_batches(max_chunksize=10_000):
        yield [[*_row(r), (r["aliases"] or [])[:_ALIASES]] for r in batch.to_pylist()]


def read(dataset: Dataset) -> Search:
    """The search over a published dataset."""
    commits = dataset.published["i2e/entities"]
    batches = list(dataset.tables.batches("i2e/entities", commits, _COLUMNS))
    schema = pa.schema([dataset.tables.catalogue.schema("i2e/entities").field(name) for name in _COLUMNS])
    return search(
        pa.Table.from_batches([b.select(_COLUMNS) for b in batches], batches[0].schema if batches else schema)
    )


def write(output: str, made: Search) -> None:
    """Put the pages beside the report that will name them. They are whole before the report is written, and those of
    the report before stay until `sweep`."""
    if not made.folder or files.exists(whole := files.join(output, made.folder, "whole.js")):
        return  # Its name says what is in it.
    if files.is_local(output):
        _, inner = files.open_filesystem(files.join(output, made.folder))
        with files.fresh_folder(inner) as fresh:
            for name, content in made.files():
                (fresh / name).write_bytes(content)
            (fresh / "whole.js").write_bytes(b"")
        return
    for name, content in made.files():
        files.write_bytes(files.join(output, made.folder, name), content)
    files.write_bytes(whole, b"\n")


def sweep(output: str, made: Search) -> None:
    """Remove what reports before this one had beside them."""
    if not files.exists(place := files.join(output, FOLDER)):
        return
    if not made.folder:
        files.remove(place)
        return
    for name in files.list_folders(place):
        if f"{FOLDER}/{name}" != made.folder:
            files.remove(files.join(place, name))


def as_script(value: Any) -> str:
    """JSON that may stand inside a script element: no name can end it, or begin a comment."""
    said = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return said.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def folded(names: pa.Array) -> pa.Array:
    """Names as they are compared: without case, accents and what is neither letter nor digit; a name of nothing else
    (☿) as it is. find.js does the same."""
    plain = pc.utf8_lower(pc.replace_substring_regex(pc.utf8_normalize(names, form="NFKD"), r"\p{M}+", ""))
    plain = pc.replace_substring(plain, "ς", "σ")
    words, signs = (
        pc.utf8_trim(pc.replace_substring_regex(plain, between, " "), " ")
        for between in (r"[^\p{L}\p{N}]+", r"[\p{Z}\s]+")
    )
    words = pc.if_else(pc.equal(words, ""), signs, words)
    return pc.utf8_slice_codeunits(words, 0, MAX_KEY)


def _row(r: dict[str, Any]) -> list[Any]:
    description = r["description"] or ""
    if len(description) > _DESCRIPTION:
        description = description[: _DESCRIPTION - 1].rstrip() + "…"
    scores = [None if r[name] is None else round(r[name], 3) for name in ("mean_probability", "mean_clip_score")]
    return [r["entity_id"], r["name"], description, r["coarse_type"] or "", r["images"], *scores]


@dataclass(frozen=True)
class _Pages:
    """All keys in their order, by code points."""

    entities: pa.Table
    key: pa.Array
    row: np.ndarray
    """of `entities`, per key; entities lie with the most images first, so a smaller row is a better hit"""
    word: np.ndarray
    """per key: at which word of the name it begins; -1: it is the Q-id, -2: an alias"""
    alias: pa.Array
    """per key; "" where it is none"""
    firsts: list[str]
    chosen: dict[str, list[int]]
    """What begins too many keys → places of its best hits among the keys."""

    @classmethod
    def of(cls, entities: pa.Table) -> _Pages:
        rows, name = np.arange(entities.num_rows), folded(entities.column("name").combine_chunks())
        parts = [_keys(name, rows, 0)]
        for n in range(1, _WORDS):
            rest = pc.replace_substring_regex(name, rf"^(?:[^ ]+ ){{{n}}}", "")
            has = np.flatnonzero(pc.not_equal(rest, name).to_numpy(zero_copy_only=False))
            parts.append(_keys(rest.take(pa.array(has)), has, n))
        lists = pc.list_slice(entities.column("aliases").combine_chunks(), 0, _ALIASES)
        alias = pc.list_flatten(lists)
        parts.append(_keys(folded(alias), pc.list_parent_indices(lists).to_numpy(), -2, alias))
        ids = entities.column("entity_id").combine_chunks().cast(pa.string())
        parts.append(_keys(pc.binary_join_element_wise("q", ids, ""), rows, -1))
        table = pa.concat_tables(parts).combine_chunks()
        table = table.filter(pc.not_equal(table.column("key"), ""))
        # As bytes: UTF-8 sorts as its code points do.
        table = table.sort_by([("bytes", "ascending"), ("row", "ascending"), ("word", "descending")])
        key, row = table.column("key").combine_chunks(), table.column("row").to_numpy()
        return cls(
            entities,
            key,
            row,
            table.column("word").to_numpy(),
            table.column("alias").combine_chunks(),
            key.take(pa.array(np.arange(0, len(key), PAGE_KEYS))).to_pylist(),
            _tops(key, row),
        )

    @property
    def tops(self) -> dict[str, int]:
        """What begins too many keys → number of the file that has its hits."""
        return {start: n // _TOPS_IN_A_FILE for n, start in enumerate(self.chosen)}

    def scripts(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file."""
        for n in range(len(self.firsts)):
            places = range(n * PAGE_KEYS, min((n + 1) * PAGE_KEYS, len(self.row)))
            yield self._script(f"p{n}", self._rows(places))
        starts = list(self.chosen)
        for n in range(0, len(starts), _TOPS_IN_A_FILE):
            held = {start: self._rows(self.chosen[start]) for start in starts[n : n + _TOPS_IN_A_FILE]}
            yield self._script(f"t{n // _TOPS_IN_A_FILE}", held)

    @staticmethod
    def _script(name: str, content: Any) -> tuple[str, bytes]:
        return f"{name}.js", f"entitiesFound({as_script(name)},{as_script(content)})\n".encode()

    def _rows(self, places: Sequence[int]) -> list[list[Any]]:
        """Rows as `Search.embedded` has them, with, in place of aliases, what the key is of: a word's number, -1
        (Q-id), or the alias."""
        at = np.asarray(places, np.int64)
        of = self.entities.take(pa.array(self.row[at])).to_pylist()
        aliases = self.alias.take(pa.array(at)).to_pylist()
        words = self.word[at].tolist()
        return [[*_row(r), alias if word == -2 else word] for r, word, alias in zip(of, words, aliases, strict=True)]


def _keys(key: pa.Array, row: np.ndarray, word: int, alias: pa.Array | None = None) -> pa.Table:
    """Keys of one kind, as `_Pages` has them."""
    key = key.cast(pa.large_string())
    return pa.table(
        {
            "key": key,
            "row": pa.array(row, pa.int64()),
            "word": pa.array(np.full(len(row), word, np.int8)),
            "alias": pa.repeat(pa.scalar("", pa.large_string()), len(row)) if alias is None else alias.cast(key.type),
            "bytes": key.cast(pa.large_binary()),
        }
    )


def _tops(key: pa.Array, row: np.ndarray) -> dict[str, list[int]]:
    """The SHOWN best hits of whatever begins more keys than two pages hold: what is typed whole first, then what has
    the most images. An entity is a hit once.

    key   in order
    row   of the entity, per key; smaller is better
    """
    lengths = pc.utf8_length(key).to_numpy(zero_copy_only=False)
    found: dict[str, list[int]] = {}
    waiting = [(0, len(key), 0)]
    while waiting:
        low, high, length = waiting.pop()
        if length:
            start = key[low].as_py()[:length]
            best = np.lexsort((row[low:high], lengths[low:high] != length))[: SHOWN * (_ALIASES + _WORDS + 1)] + low
            _, first = np.unique(row[best], return_index=True)
            found[start] = best[np.sort(first)][:SHOWN].tolist()
        if length == MAX_KEY:
            continue
        letters = pc.utf8_slice_codeunits(key.slice(low, high - low), length, length + 1)
        changes = pc.not_equal(letters.slice(1), letters.slice(0, len(letters) - 1)).to_numpy(zero_copy_only=False)
        edges = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(letters)]]) + low
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if b - a > 2 * PAGE_KEYS and lengths[b - 1] > length:
                waiting.append((a, b, length + 1))
    return dict(sorted(found.items()))
