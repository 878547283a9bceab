"""Popularity, anchor counts and merged ids from files, as Spark reads them.

popularity   `qid,number`: in-degrees, QRank page views, importances; the scale does not matter
anchors      `surface<TAB>qid<TAB>count`: how often a link with this text led to this entity; a fourth column
             `unlinked` says how often the surface stands in running text and is no link, the same in each row of a
             surface, empty where that was not counted
importance   osm-search's wikimedia_importance: `language<TAB>type<TAB>title<TAB>importance<TAB>wikidata_id`, where the
             type of a redirect is `r`. Rows without an id, which the file has, say nothing
redirects    `from<TAB>into`: ids of items that were merged into others

A first row that parses is data, any other is a header. Rows have as many fields as the header, of which those behind
the named ones are passed over. Fields are split at the separator alone: anchors have quotation marks in them that quote
nothing. A row that does not parse is an error with file and line, since a wrong column would otherwise bend every prior
in silence. All rows are looked at before any is used: a file is read twice, at some 100 MB/s, by one task.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from wikidata import source_files
from wikidata.schemas import ANCHORS, NAMES
from wikidata.source_files import OpenFileSystem, Source, SourceError, blocks, of_its_own, recognised
from wikidata.surface import inadmissible, normal_forms, without_qualifier

log = logging.getLogger(__name__)

Warn = Callable[[str], None]

_ID = "^Q[1-9][0-9]{0,17}$"
_NUMBER = r"^\+?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_COUNT = "^[0-9]{1,18}$"
_LIKE_AN_ID = r"^[A-Za-z]?[0-9]+$"
_LIKE_A_NUMBER = r"(?i)^[+-]?([0-9.][0-9.,e+-]*|inf(inity)?|nan)$"


@dataclass(frozen=True)
class _Form:
    """How the rows of a file are written."""

    said: str
    columns: tuple[str, ...]
    number: str = ""
    """The column that holds one; "": none does."""
    separator: str = "\t"
    whole: bool = False
    """Whether the number is a whole one."""
    quoted: bool = False
    """Whether quotation marks around a field belong to the file and not to the field."""
    ids: tuple[str, ...] = ("qid",)
    """Columns that hold an id."""
    ids_may_lack: bool = False
    further: str = ""
    """A column behind the others that a file may have: of whole numbers, or empty. A header names it so, and without a
    header rows have one field more."""

    def trimmed(self, name: str, values: pa.Array) -> pa.Array:
        if self.quoted:
            values = pc.replace_substring_regex(values, r'^\s*"(.*)"\s*$', r"\1")
        return values if name in ("surface", "title") else pc.utf8_trim_whitespace(values)


_POPULARITY = _Form(source_files.POPULARITY, ("qid", "number"), "number", ",", quoted=True)
_ANCHORS = _Form(source_files.ANCHORS, ("surface", "qid", "count"), "count", whole=True, further="unlinked")
_IMPORTANCE = _Form(
    source_files.IMPORTANCE, ("language", "type", "title", "importance", "qid"), "importance", ids_may_lack=True
)
_REDIRECTS = _Form(source_files.REDIRECTS, ("from", "into"), ids=("from", "into"))
_FORMS = {"popularity": _POPULARITY, "anchors": _ANCHORS, "importance": _IMPORTANCE}


@dataclass
class _Survey:
    """What the rows of a file are like."""

    rows: int = 0
    not_utf8: int = 0
    first_not_utf8: int = 0
    """Its line, from 1; 0: there is none."""


def read_popularity(
    spark: SparkSession, paths: Sequence[str], open_filesystem: OpenFileSystem = of_its_own
) -> DataFrame:
    """Popularity of entities from files of `qid,number`.

    Returns POPULARITY, the larger number where an id stands twice.
    Raises  FileNotFoundError; SourceError that names file and line for a row that does not parse.
    """
    form = _POPULARITY
    if all(".tsv" in path.rpartition("/")[2] for path in paths):
        form = _Form("a TSV of `qid<TAB>number`", form.columns, form.number, quoted=True)
    schema = "entity_id bigint, popularity double"
    rows = _rows(spark, paths, form, _popularity, schema, open_filesystem=open_filesystem)
    return rows.groupBy("entity_id").agg(F.max("popularity").alias("popularity"))


def read_anchors(
    spark: SparkSession,
    paths: Sequence[str],
    warn: Warn = log.warning,
    open_filesystem: OpenFileSystem = of_its_own,
) -> DataFrame:
    """Anchor counts from files of `surface<TAB>qid<TAB>count`, with or without `unlinked`.

    warn    is told of lines that are not UTF-8; what is no character in them is U+FFFD
    Returns ANCHORS, one row per (surface, entity); surfaces that are no admissible names (numbers, signs) are left out.
            `unlinked` is the surface's own, and so the same in each of its rows; that of several files is their sum
    Raises  FileNotFoundError; SourceError that names file and line for a row that does not parse.
    """
    schema = "surface string, entity_id bigint, count bigint, unlinked bigint, source int"
    counted = _rows(spark, paths, _ANCHORS, _anchors, schema, warn, open_filesystem)
    if not any("unlinked" in first for path in paths if (first := _first_rows([path], _ANCHORS, open_filesystem))):
        summed = counted.groupBy("surface", "entity_id").agg(F.sum("count").alias("count"))
        summed = summed.withColumn("unlinked", F.lit(None).cast("bigint"))
    else:
        # Of each file a surface's number once, and then their sum; by one shuffle, so that files are read once.
        in_file, whole = Window.partitionBy("surface", "source"), Window.partitionBy("surface")
        best = F.max("unlinked").over(in_file)
        once = F.when(F.row_number().over(in_file.orderBy("entity_id")) == 1, best)
        rows = counted.repartition("surface").withColumn("once", once).withColumn("all", F.sum("once").over(whole))
        summed = rows.groupBy("surface", "entity_id").agg(F.sum("count").alias("count"), F.max("all").alias("unlinked"))
    return summed.select("surface", "entity_id", "count", "unlinked").mapInArrow(
        _with_normal_form, from_arrow_schema(ANCHORS)
    )


SourceName = Literal["popularity", "anchors", "importance"]


def first_ids(paths: Sequence[str], of: SourceName, open_filesystem: OpenFileSystem = of_its_own) -> list[int]:
    """Entity ids of the first rows, at most 1,000: enough to see that a file is of another knowledge base."""
    first = _first_rows(paths, _FORMS[of], open_filesystem)
    if not first:
        return []
    named = first["qid"].filter(pc.not_equal(first["qid"], ""))[:10_000]
    ids: list[int] = pc.unique(_entity_ids(named)).to_pylist()
    return ids[:1000]


def _first_rows(paths: Sequence[str], form: _Form, open_filesystem: OpenFileSystem) -> dict[str, pa.Array]:
    """Those of the first block of the first file that is not empty; {} where there is none."""
    try:
        return next(parsed(recognised(paths, form.said, open_filesystem)[0], form), {})
    except SourceError:
        return {}  # an empty file among others; who reads all says what is wrong with them


def read_importance(
    spark: SparkSession,
    paths: Sequence[str],
    languages: Sequence[str] = ("en",),
    warn: Warn = log.warning,
    open_filesystem: OpenFileSystem = of_its_own,
) -> tuple[DataFrame, DataFrame]:
    """Popularity, and titles and redirects as names, from files of wikimedia_importance's five columns.

    languages   of the dump: a title of the English Wikipedia is one of `en` and of `en-gb`
    warn        is told of lines that are not UTF-8
    Returns POPULARITY (the greatest importance of any language) and NAMES (kinds "title" and "redirect", of
            `languages`; without what stands in brackets behind a title). A name may stand more than once. Rows without
            a Wikidata id are left out
    Raises  FileNotFoundError; SourceError that names file and line for a row that does not parse.
    """
    schema = "language string, type string, title string, importance double, entity_id bigint"
    rows = _rows(spark, paths, _IMPORTANCE, _importance, schema, warn, open_filesystem)
    languages = sorted({*languages, *(language.partition("-")[0] for language in languages)})
    popularity = rows.groupBy("entity_id").agg(F.max("importance").alias("popularity"))
    kind = F.when(F.col("type") == "r", "redirect").otherwise("title").alias("kind")
    titled = rows.where(F.col("language").isin(*languages) & (F.length("title") > 0))
    titled = titled.select(F.translate("title", "_", " ").alias("surface"), "entity_id", kind, "language")
    return popularity, titled.mapInArrow(_titles, from_arrow_schema(NAMES))


def read_redirects(
    spark: SparkSession, paths: Sequence[str], open_filesystem: OpenFileSystem = of_its_own
) -> DataFrame:
    """Merged ids from files of `from<TAB>into`.

    Returns REDIRECTS, as they stand there: a chain's links one by one.
    Raises  FileNotFoundError; SourceError that names file and line for a row that does not parse.
    """
    schema = "entity_id bigint, into bigint"
    return _rows(spark, paths, _REDIRECTS, _redirects, schema, open_filesystem=open_filesystem)


def _redirects(columns: Mapping[str, pa.Array]) -> list[pa.Array]:
    return [_entity_ids(columns["from"]), _entity_ids(columns["into"])]


def _popularity(columns: Mapping[str, pa.Array]) -> list[pa.Array]:
    return [_entity_ids(columns["qid"]), columns["number"].cast(pa.float64())]


def _anchors(columns: Mapping[str, pa.Array]) -> list[pa.Array]:
    unlinked = pa.nulls(len(columns["qid"]), pa.int64())
    if "unlinked" in columns:
        has = pc.not_equal(columns["unlinked"], "")
        unlinked = pc.if_else(has, columns["unlinked"], pa.scalar(None, columns["unlinked"].type)).cast(pa.int64())
    counts = columns["count"].cast(pa.int64())
    return [columns["surface"].cast(pa.string()), _entity_ids(columns["qid"]), counts, unlinked]


def _importance(columns: Mapping[str, pa.Array]) -> list[pa.Array]:
    has = pc.not_equal(columns["qid"], "")
    known = {name: values.filter(has) for name, values in columns.items()}
    texts = [known[name].cast(pa.string()) for name in ("language", "type", "title")]
    return [*texts, known["importance"].cast(pa.float64()), _entity_ids(known["qid"])]


def _entity_ids(ids: pa.Array) -> pa.Array:
    return pc.utf8_slice_codeunits(ids, 1, None).cast(pa.int64())


def _rows(
    spark: SparkSession,
    paths: Sequence[str],
    form: _Form,
    made: Callable[[Mapping[str, pa.Array]], list[pa.Array]],
    schema: str,
    warn: Warn = log.warning,
    open_filesystem: OpenFileSystem = of_its_own,
) -> DataFrame:
    """The rows of all files, each of which was looked at; a task reads a file."""
    sources = recognised(paths, form.said, open_filesystem)
    # Named by the form, so that who reads Spark's log tells the looks at several sources apart.
    numbers = spark.range(0, len(sources), 1, len(sources)).toDF(f"file_of_{'_'.join(form.columns)}")
    told = numbers.mapInArrow(partial(_surveyed, sources=sources, form=form), _SURVEY).collect()
    if faults := sorted((row.source, row.fault) for row in told if row.fault):
        raise SourceError(faults[0][1])
    if not sum(row.rows for row in told):
        raise SourceError(f"{sources[0].path} has no row, it begins with {sources[0].begins!r}. Wanted is {form.said}")
    for row in sorted(told, key=lambda row: row.source):
        if row.not_utf8:
            warn(
                f"{sources[row.source].path}: {row.not_utf8:,} of {row.rows:,} rows are not UTF-8, the first in line "
                f"{row.first_not_utf8:,}: what is no character there is read as U+FFFD, and such names are never "
                "found. Convert the file (iconv -t UTF-8)"
            )
    names = [field.partition(" ")[0] for field in schema.split(", ")]
    return numbers.mapInArrow(partial(_read, sources=sources, form=form, made=made, names=names), schema)


_SURVEY = "source int, rows bigint, not_utf8 bigint, first_not_utf8 bigint, fault string"


def _surveyed(batches: Iterable[pa.RecordBatch], sources: Sequence[Source], form: _Form) -> Iterator[pa.RecordBatch]:
    for number in (n for batch in batches for n in batch.column(0).to_pylist()):
        survey, fault = _Survey(), None
        try:
            for _ in parsed(sources[number], form, survey):
                pass
        except SourceError as error:
            fault = str(error)
        columns = [[number], [survey.rows], [survey.not_utf8], [survey.first_not_utf8], [fault]]
        kinds = [pa.int32(), *[pa.int64()] * 3, pa.string()]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, [field.partition(" ")[0] for field in _SURVEY.split(", ")])


def _read(
    batches: Iterable[pa.RecordBatch],
    sources: Sequence[Source],
    form: _Form,
    made: Callable[[Mapping[str, pa.Array]], list[pa.Array]],
    names: Sequence[str],
) -> Iterator[pa.RecordBatch]:
    for number in (n for batch in batches for n in batch.column(0).to_pylist()):
        for columns in parsed(sources[number], form):
            arrays = made(columns)
            if names[-1] == "source":
                arrays.append(pa.repeat(pa.scalar(number, pa.int32()), len(arrays[0])))
            yield pa.RecordBatch.from_arrays(arrays, list(names))


def parsed(
    source: Source, form: _Form, survey: _Survey | None = None, size: int = source_files.BLOCK
) -> Iterator[dict[str, pa.Array]]:
    """The rows of a file in blocks: each named column's strings, checked, blank lines and the header left out.

    survey   is filled with what was seen
    Raises SourceError, with file and line, for the first row that does not parse.
    """
    survey, width, lines_before = survey or _Survey(), 0, 0
    further = False
    for block in blocks(source, size=size):
        if not lines_before:
            block = block.removeprefix(b"\xef\xbb\xbf")
        text, bad = _decoded(block.removesuffix(b"\n"))
        survey.not_utf8 += len(bad)
        survey.first_not_utf8 = survey.first_not_utf8 or (lines_before + bad[0] + 1 if bad else 0)
        lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten()
        numbers = np.arange(lines_before + 1, lines_before + len(lines) + 1)
        lines_before += len(lines)
        written = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(lines)), 0)
        lines, numbers = lines.filter(written), numbers[written.to_numpy(zero_copy_only=False)]
        if not len(lines):
            continue
        fields = pc.split_pattern(pc.utf8_rtrim(lines, "\r"), form.separator)
        if not width:
            first = fields[0].as_py()
            width = len(form.columns)
            header = _is_header(first, form)
            if form.further and len(first) > width:
                said = form.trimmed("", pa.array([first[width]]))[0].as_py()
                further = said.lower() == form.further if header else len(first) == width + 1
                width += further
            if header:
                width = max(width, len(first))
                if len(first) < len(form.columns):
                    raise _fault(source, form, numbers[0], lines[0], f"it has {_counted(len(first))}{_split(first)}")
                fields, lines, numbers = fields.slice(1), lines.slice(1), numbers[1:]
        if columns := _checked(source, form, fields, lines, numbers, width, further):
            survey.rows += len(lines)
            yield columns


def _decoded(block: bytes) -> tuple[str, list[int]]:
    """The text of a block, and the places of its lines that are not UTF-8."""
    try:
        return block.decode(), []
    except UnicodeDecodeError:
        bad = []
        for place, line in enumerate(block.split(b"\n")):
            try:
                line.decode()
            except UnicodeDecodeError:
                bad.append(place)
        return block.decode("utf-8", "replace"), bad


def _is_header(fields: Sequence[str], form: _Form) -> bool:
    """Does a first row hold neither an id nor a number where rows have them?"""
    held = dict(zip(form.columns, (form.trimmed("", pa.array([f]))[0].as_py() for f in fields), strict=False))
    ids = pa.array([held.get(name, "") for name in form.ids])
    like_an_id = pc.any(pc.match_substring_regex(ids, _LIKE_AN_ID)).as_py()
    like_a_number = pc.match_substring_regex(pa.array([held.get(form.number, "")]), _LIKE_A_NUMBER)[0].as_py()
    return not like_an_id and not like_a_number


def _checked(
    source: Source,
    form: _Form,
    fields: pa.Array,
    lines: pa.Array,
    numbers: npt.NDArray[np.int64],
    width: int,
    further: bool = False,
) -> dict[str, pa.Array] | None:
    """The named columns of rows, and the further one; None for no row. Raises SourceError for the first wrong one."""
    if not len(lines):
        return None
    sizes = pc.list_value_length(fields)
    wrong = {"columns": pc.not_equal(sizes, width)}
    right = fields.filter(pc.invert(wrong["columns"]))
    named = (*form.columns, form.further) if further else form.columns
    columns = {name: form.trimmed(name, pc.list_element(right, n)) for n, name in enumerate(named)}
    faults = []
    for name in form.ids:
        is_id = pc.match_substring_regex(columns[name], _ID)
        if form.ids_may_lack:
            is_id = pc.or_(is_id, pc.equal(columns[name], ""))
        faults.append((is_id, f"{name} is not Q and a positive number"))
    if form.number:
        is_number = pc.match_substring_regex(columns[form.number], _COUNT if form.whole else _NUMBER)
        if not form.whole:
            finite = pc.is_finite(pc.if_else(is_number, columns[form.number], "0").cast(pa.float64()))
            is_number = pc.and_(is_number, finite)
        faults.append((is_number, f"{form.number} is not a {'whole ' if form.whole else 'finite '}number ≥ 0"))
    if further:
        whole = pc.match_substring_regex(columns[form.further], _COUNT)
        faults.append((pc.or_(whole, pc.equal(columns[form.further], "")), f"{form.further} is not a whole number ≥ 0"))
    if "surface" in columns:
        faults.append((pc.not_equal(columns["surface"], ""), "surface is empty"))
    standing = np.flatnonzero(~wrong["columns"].to_numpy(zero_copy_only=False))
    found = []
    if len(standing) < len(lines):
        place = int(np.flatnonzero(wrong["columns"].to_numpy(zero_copy_only=False))[0])
        hint = _split(fields[place].as_py())
        found.append((place, f"it has {_counted(sizes[place].as_py())} instead of {width}{hint}"))
    for good, why in faults:
        places = np.flatnonzero(~good.to_numpy(zero_copy_only=False))
        if len(places):
            found.append((int(standing[places[0]]), why))
    if found:
        place, why = min(found)
        raise _fault(source, form, numbers[place], lines[place], why)
    return columns


def _counted(columns: int) -> str:
    return "1 column" if columns == 1 else f"{columns} columns"


def _split(fields: Sequence[str]) -> str:
    """What a row that is one field seems to be split by."""
    found = next((separator for separator in "\t;,|" if len(fields) == 1 and separator in fields[0]), "")
    return f"; is it split by {found!r}?" if found else ""


def _fault(source: Source, form: _Form, number: int, line: pa.Scalar, why: str) -> SourceError:
    return SourceError(f"{source.path}, line {number:,}: {line.as_py()[:120]!r} is no row of {form.said}: {why}")


def _with_normal_form(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """surface, entity_id, count, unlinked -> ANCHORS."""
    for batch in batches:
        forms = normal_forms(batch.column("surface"))
        table = pa.table([forms, *(batch.column(n) for n in ANCHORS.names[1:])], names=ANCHORS.names)
        yield from _admissible(table).cast(ANCHORS).to_batches()


def _titles(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """surface, entity_id, kind, language -> NAMES."""
    for batch in batches:
        surfaces = pa.array([without_qualifier(s) for s in batch.column("surface").to_pylist()], pa.string())
        rest = [batch.column(n) for n in ("entity_id", "kind", "language")]
        table = pa.table([normal_forms(surfaces), surfaces, *rest], names=NAMES.names)
        yield from _admissible(table).cast(NAMES).to_batches()


def _admissible(table: pa.Table) -> pa.Table:
    forms = table.column("normal_form").combine_chunks()
    return table.filter(pa.array([inadmissible(f) is None for f in forms.to_pylist()], pa.bool_()))
