"""Rows of Wikipedia's tables `page` and `redirect` from their SQL dumps: a kernel over lines.

page      (page_id, page_namespace, 'page_title', …)
redirect  (rd_from, rd_namespace, 'rd_title', 'rd_interwiki', 'rd_fragment')

Both begin with two numbers and a title, in all versions of MediaWiki since 1.5; what is behind them differs, and is
passed over. In a string of SQL every quotation mark is escaped, so no title can look like the beginning of a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pyarrow as pa

from wikidata.anchors import title
from wikidata.source_files import Source, SourceError, blocks

ROWS = pa.schema(
    [
        pa.field("site", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("id", pa.int64(), nullable=False),
        pa.field("namespace", pa.int32(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
    ]
)
SPARK_ROWS = "site string, table string, id bigint, namespace int, title string"

_INSERT = re.compile(rb"\s*INSERT INTO `?(\w+)`?\s", re.IGNORECASE)
_TABLE = re.compile(r"(?:INSERT INTO|CREATE TABLE)\s+`?(\w+)`?", re.IGNORECASE)
_ROW = re.compile(rb"[(](\d{1,18}),(-?\d{1,9}),'((?:[^'\\]|\\.)*)'(?:,'((?:[^'\\]|\\.)*)')?", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_DATABASE = re.compile(r"Database:\s*(\w+)")
_NAMED_BY_FILE = re.compile(r"([a-z]{2,}(?:_[a-z]+)*wiki)-")


def table_and_site(head: str, path: str) -> tuple[str, str] | None:
    """Which table of which wiki a dump holds, by its first characters and its file's name; None where they do not
    tell."""
    named = _NAMED_BY_FILE.match(path.replace("\\", "/").rpartition("/")[2]) or _DATABASE.search(head)
    table = _TABLE.search(head)
    if named is None or table is None or table[1] not in ("page", "redirect"):
        return None
    return table[1], named[1]


def rows(line: bytes) -> Iterator[tuple[str, int, int, str]]:
    """table, id, namespace and title of each row that a line inserts; redirects to other wikis are left out."""
    insert = _INSERT.match(line)
    if insert is None:
        return
    table = insert[1].decode()
    for row in _ROW.finditer(line, insert.end()):
        if table == "redirect" and row[4]:
            continue
        name = title(_ESCAPED.sub(rb"\1", row[3]).decode("utf-8", "replace"), False)
        if name is not None:
            yield table, int(row[1]), int(row[2]), name


def read(batches: Iterable[pa.RecordBatch], source: Source, site: str) -> Iterator[pa.RecordBatch]:
    """ROWS of a dump, once for each row of `batches`, which say nothing else. Raises SourceError for one without a
    row."""
    found = False
    for _ in (row for batch in batches for row in range(batch.num_rows)):
        for block in blocks(source):
            held = [row for line in block.split(b"\n") for row in rows(line)]
            if held:
                found = True
                tables, ids, namespaces, titles = zip(*held, strict=True)
                columns = [[site] * len(held), tables, ids, namespaces, titles]
                arrays = [pa.array(c, f.type) for c, f in zip(columns, ROWS, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, schema=ROWS)
        if not found:
            raise SourceError(f"{source.path} inserts no row of `page` or `redirect`")
