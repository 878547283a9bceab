"""The index of a published dataset: a DuckDB file that answers what the pages ask, in milliseconds.

Reads    i2e/images without the images themselves · i2e/statistics/entities, or i2e/entities where there is none ·
         with a run beside it what the label stage weighed (`labels`)
Writes   <index>/index.duckdb: labels (by entity, the most probable first), images (by id), entities, details (of
         entities, where the dataset has statistics of texts and sources), names (by what is typed), confused, drawn,
         facts. Written whole, then moved into place

An index is named by what the manifest says, so that another dataset never meets it. Everything is sorted as it is
asked for: a page of an entity's images are rows that lie one after the other, and a word that is typed is the beginning
of a range of names. Building goes file by file; DuckDB sorts on disk what its memory does not hold.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from i2e_pipeline.core import files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.domains import hosts
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.ids import hex_of
from i2e_pipeline.core.schemas import ENTITY_DETAILS, ENTITY_STATISTICS
from i2e_pipeline.core.scripts import scripts
from i2e_pipeline.dataset.published import ImageFile, Published, open_published, part_files
from i2e_pipeline.label import drawing

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

FOLDER = "_explore"
"""Below an output: the index, which holds texts and ids of the dataset."""
_FILE = "index.duckdb"
_INDEX = re.compile(r"[0-9a-f]{32}(\.similar)?")
VERSION = 4
"""Raised with the layout of the file: an index of another version is built again."""
WINDOW = 60_000
"""Labels that one scrolled list holds: browsers lay out no element of more than some 16 million pixels."""
_MOST_WORDS, _MOST_LETTERS = 6, 60
"""Words of a name that a search may begin with, and letters of it that it compares."""
_ALT_TEXT = 300
"""Characters of an alt-text that lists show; its page shows it whole."""
_READ = ("image_id", "url", "alt_text", "perceptual_hash", "split", "labels")
_OF_ENTITIES = (
    "entity_id", "class_index", "name", "description", "aliases", "images", "pairs_proposed", "pairs_labelled",
    "mean_clip_score", "mean_probability", "types", "coarse_type", "sitelinks", "popularity", "retired",
)  # fmt: skip
_OF_DETAILS = pa.schema([ENTITY_STATISTICS.field("entity_id"), *ENTITY_DETAILS])

Weighed = Sequence[tuple[str, Callable[[], Iterator[pa.RecordBatch]]]]
"""By unit, what the label stage weighed: image_id, pair_id, entity_id, probability, mention, reason, shard,
row. Read twice."""


class IndexFault(I2EError):
    """The index cannot be built or opened."""


@dataclass
class Limits:
    """What building and asking may take of the machine."""

    memory_gb: float = 2.0
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


def name_of(folder: str, manifest: Mapping[str, Any], with_run: bool) -> str:
    """The name of the folder of a dataset's index. Two runs may make equal datasets of files with other names."""
    return digest([VERSION, with_run, dict(manifest), part_files(files.join(folder, "images"))])


def connect(path: Path, limits: Limits, read_only: bool) -> DuckDBPyConnection:
    """A connection whose cursors may be used by threads. It reaches no file but its own."""
    import duckdb

    try:
        made = duckdb.connect(str(path), read_only=read_only)
    except duckdb.Error as error:
        raise IndexFault(f"{path} cannot be opened as an index: {error}. Delete it: it is built again") from None
    made.execute(f"SET memory_limit = '{int(limits.memory_gb * 1000)}MB'")
    made.execute(f"SET threads = {limits.threads}")
    # A page of a sorted list: the other columns of its rows alone are read.
    made.execute("SET late_materialization_max_rows = 1000")
    if read_only:
        made.execute("SET enable_external_access = false")
    return made


def open_index(
    folder: str,
    manifest: Mapping[str, Any],
    place: Path,
    limits: Limits,
    weighed: Weighed | None = None,
    own: bool = False,
) -> DuckDBPyConnection:
    """The index of the dataset in `folder`, built into the folder `place` where it is not there yet.

    weighed   None: there is no run beside the dataset
    own       nothing else lies in `place`: indexes of earlier datasets are removed there
    Of several processes that want the same one, the first builds it.
    """
    name = name_of(folder, manifest, weighed is not None)
    whole = place / name
    if not whole.exists():
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):
            if not whole.exists():
                _build(folder, whole, limits, weighed)
            for old in place.iterdir() if own else ():
                if _INDEX.fullmatch(old.name) and not old.name.startswith(name):
                    shutil.rmtree(old, ignore_errors=True)
    return connect(whole / _FILE, limits, read_only=True)


def _build(folder: str, whole: Path, limits: Limits, weighed: Weighed | None) -> None:
    started = time.monotonic()
    published = open_published(folder)
    log.info("building the index of %s images, once for this dataset, into %s", f"{published.rows:,}", whole.parent)
    with files.fresh_folder(whole, alone=True) as fresh:
        made = connect(fresh / _FILE, limits, read_only=False)
        try:
            spilled = str(fresh / "spilled").replace("'", "''")
            made.execute(f"SET temp_directory = '{spilled}'")
            _write_labels(made, published)
            _write_entities(made, published)
            _write_names(made)
            _write_confused(made, weighed)
            _write_drawn(made, weighed, threshold_of(published.manifest))
            _write_facts(made, published, weighed is not None)
        finally:
            made.close()
        shutil.rmtree(fresh / "spilled", ignore_errors=True)
    log.info("index: %.0f s, %.1f MB", time.monotonic() - started, (whole / _FILE).stat().st_size / 1e6)


def threshold_of(manifest: Mapping[str, Any]) -> float:
    """The probability from which a label is published."""
    return float(manifest.get("labels_chosen_by", {}).get("bar") or 0.0)


# --- images and their labels ----------------------------------------------------------------------------------------


def _write_labels(made: DuckDBPyConnection, published: Published) -> None:
    made.execute("CREATE TABLE files (file INTEGER, path VARCHAR, unit VARCHAR, rows INTEGER)")
    for number, file in enumerate(published.files):
        unit = file.path.split("/")[1].removeprefix("unit=")
        made.execute("INSERT INTO files VALUES (?, ?, ?, ?)", [number, file.path, unit, file.rows])
    made.execute(
        "CREATE TABLE raw_labels (entity_id BIGINT, score FLOAT, clip_score FLOAT, image_id UUID, file INTEGER, "
        "row INTEGER, mention VARCHAR, alt_text VARCHAR, domain VARCHAR, script VARCHAR, split VARCHAR)"
    )
    made.execute(
        "CREATE TABLE raw_images (image_id UUID, file INTEGER, row INTEGER, "
        "h0 UBIGINT, h1 UBIGINT, h2 UBIGINT, h3 UBIGINT)"
    )
    done, said = 0, time.monotonic()
    for labels, images in _read_ahead(published):
        made.register("arrived", labels)
        made.execute("INSERT INTO raw_labels SELECT * REPLACE (image_id::UUID AS image_id) FROM arrived")
        made.register("arrived", images)
        made.execute("INSERT INTO raw_images SELECT * REPLACE (image_id::UUID AS image_id) FROM arrived")
        made.unregister("arrived")
        done += images.num_rows
        if time.monotonic() - said > 10:
            log.info("%s of %s images read", f"{done:,}", f"{published.rows:,}")
            said = time.monotonic()
    # Numbers of domains: a filter compares numbers, and not millions of names.
    made.execute(
        "CREATE TABLE domains AS SELECT (row_number() OVER (ORDER BY n DESC, domain))::INTEGER AS domain_id, domain, n "
        "FROM (SELECT domain, count(*) AS n FROM raw_labels WHERE domain IS NOT NULL GROUP BY 1) ORDER BY 1"
    )
    made.execute(
        "CREATE TABLE labels AS SELECT l.* EXCLUDE (domain), d.domain_id FROM raw_labels l "
        "LEFT JOIN domains d USING (domain) ORDER BY entity_id, score DESC, image_id"
    )
    made.execute("DROP TABLE raw_labels")
    # As good as drawn: by image, whose id is a hash. As many as one list scrolls through lie together.
    made.execute(f"CREATE TABLE look AS SELECT * FROM labels ORDER BY image_id, entity_id LIMIT {WINDOW}")
    made.execute("CREATE TABLE images AS SELECT * FROM raw_images ORDER BY image_id")
    made.execute("DROP TABLE raw_images")


def _read_ahead(published: Published) -> Iterator[tuple[pa.Table, pa.Table]]:
    """What is kept of each row group, in order; two are read at the same time."""
    places = [
        (number, file, group, start)
        for number, file in enumerate(published.files)
        for group, start in enumerate(np.cumsum([0, *file.row_group_rows[:-1]]).tolist() if file.row_group_rows else [])
    ]
    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(_of_row_group, published, *place) for place in places[:3]]
        for n in range(len(places)):
            yield ahead.pop(0).result()
            if n + 3 < len(places):
                ahead.append(pool.submit(_of_row_group, published, *places[n + 3]))


def _of_row_group(
    published: Published, number: int, file: ImageFile, group: int, start: int
) -> tuple[pa.Table, pa.Table]:
    with published.open(file) as opened:
        held = opened.schema_arrow.names
        rows = opened.read_row_group(group, columns=[name for name in _READ if name in held])
    return label_rows(rows, number, start), image_rows(rows, number, start)


def label_rows(rows: pa.Table, file: int, start: int) -> pa.Table:
    """A row per label of some rows of i2e/images, as the index holds it.

    file, start   the number of the file, and of its first of these rows
    """
    rows = rows.combine_chunks()
    lists = rows["labels"].combine_chunks()
    parent, label = pc.list_parent_indices(lists), pc.list_flatten(lists)
    fields = [field.name for field in label.type]

    def of_label(name: str, kind: pa.DataType) -> pa.Array:
        return pc.struct_field(label, name) if name in fields else pa.nulls(len(label), kind)

    def of_image(name: str, kind: pa.DataType) -> pa.Array:
        return rows[name].take(parent) if name in rows.column_names else pa.nulls(len(parent), kind)

    domain = hosts(rows["url"].combine_chunks()) if "url" in rows.column_names else None
    text = pc.utf8_slice_codeunits(rows["alt_text"].combine_chunks().cast(pa.string()), 0, _ALT_TEXT)
    return pa.table(
        {
            "entity_id": of_label("entity_id", pa.int64()),
            "score": of_label("score", pa.float32()),
            "clip_score": of_label("clip_score", pa.float32()),
            "image_id": _hex(rows["image_id"]).take(parent),
            "file": pa.array(np.full(len(parent), file), pa.int32()),
            "row": pc.add(parent.cast(pa.int32()), start),
            "mention": of_label("mention", pa.string()),
            "alt_text": text.take(parent),
            "domain": domain.take(parent) if domain is not None else pa.nulls(len(parent), pa.string()),
            "script": scripts(text).take(parent),
            "split": of_image("split", pa.string()),
        }
    )


def image_rows(rows: pa.Table, file: int, start: int) -> pa.Table:
    """A row per image: where it lies, and its perceptual hash as four numbers."""
    quarters: list[pa.Array] = [pa.nulls(rows.num_rows, pa.uint64())] * 4
    if "perceptual_hash" in rows.column_names:
        digits = _hex(rows["perceptual_hash"])
        known = pc.is_valid(digits).to_numpy(zero_copy_only=False)
        joined = bytes.fromhex("".join(pc.fill_null(digits, "0" * 64).to_pylist()))
        numbers = np.frombuffer(joined, ">u8").reshape(-1, 4)
        quarters = [pa.array(numbers[:, n].astype(np.uint64), mask=~known) for n in range(4)]
    return pa.table(
        {
            "image_id": _hex(rows["image_id"]),
            "file": pa.array(np.full(rows.num_rows, file), pa.int32()),
            "row": pa.array(np.arange(start, start + rows.num_rows), pa.int32()),
            **{f"h{n}": quarter for n, quarter in enumerate(quarters)},
        }
    )


def _hex(ids: pa.ChunkedArray) -> pa.Array:
    ids = ids.combine_chunks()
    if pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type):
        return ids
    return hex_of(ids)


# --- entities and their names ---------------------------------------------------------------------------------------


def _write_entities(made: DuckDBPyConnection, published: Published) -> None:
    made.execute(
        "CREATE TABLE raw_entities (entity_id BIGINT, class_index INTEGER, name VARCHAR, description VARCHAR, "
        "aliases VARCHAR[], images BIGINT, pairs_proposed BIGINT, pairs_labelled BIGINT, mean_clip_score FLOAT, "
        "mean_probability FLOAT, types VARCHAR[], coarse_type VARCHAR, sitelinks INTEGER, popularity DOUBLE, "
        "retired BOOLEAN, script VARCHAR)"
    )
    made.register("arrived", _OF_DETAILS.empty_table())
    made.execute("CREATE TABLE raw_details AS SELECT * FROM arrived")
    for table in _statistics(published):
        made.register("arrived", _completed(table, _OF_DETAILS.names).filter(pc.field("texts").is_valid()))
        made.execute("INSERT INTO raw_details SELECT * FROM arrived")
        table = _completed(table, _OF_ENTITIES)
        table = table.append_column("script", scripts(table["name"].combine_chunks().cast(pa.string())))
        made.register("arrived", table)
        made.execute("INSERT INTO raw_entities SELECT * FROM arrived")
        made.unregister("arrived")
    # What the images say counts: a page must not announce other rows than it has.
    made.execute(
        "CREATE TABLE entities AS SELECT e.* REPLACE (coalesce(l.images, 0) AS images, "
        "coalesce(retired, false) AS retired), coalesce(l.first, 0) AS first "
        "FROM raw_entities e LEFT JOIN (SELECT entity_id, count(*) AS images, min(rowid) AS first FROM labels "
        "GROUP BY entity_id) l USING (entity_id) ORDER BY entity_id"
    )
    made.execute("DROP TABLE raw_entities")
    # Apart from `entities`, which lists look through: one page asks for one row of these.
    made.execute("CREATE TABLE details AS SELECT * FROM raw_details ORDER BY entity_id")
    made.execute("DROP TABLE raw_details")


def _statistics(published: Published) -> Iterator[pa.Table]:
    """Of every entity that a text proposed where the dataset says so, else of its classes."""
    table = files.join(published.folder, "statistics", "entities")
    parts = part_files(table) if files.exists(table) else []
    if not parts:
        yield published.entities
    for part in parts:
        filesystem, inner = files.open_filesystem(files.join(table, part))
        with filesystem.open_input_file(inner) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(65_536):
                yield pa.Table.from_batches([batch])


def _completed(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """These columns; null where the dataset's format has them not."""
    for name in names:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, ENTITY_STATISTICS.field(name).type))
    return rows.select(list(names))


FOLDED = r"trim(regexp_replace(lower(strip_accents(nfc_normalize({}))), '[^\p{{L}}\p{{N}}\p{{M}}]+', ' ', 'g'))"
"""How names, and what is typed, are compared, in SQL: words of letters, numbers and marks, a blank between them."""


def _write_names(made: DuckDBPyConnection) -> None:
    """Of each name, alias and id every beginning of a word: `form`, sorted. kind 0: the name, 1: an alias, 2: words
    within one, 3: the id."""
    made.execute(
        f"""
        CREATE TABLE names AS
        WITH said AS (
            SELECT entity_id, images, name AS said, 0 AS kind FROM entities
            UNION ALL SELECT entity_id, images, unnest(aliases), 1 FROM entities WHERE aliases IS NOT NULL
        ), folded AS (
            SELECT entity_id, images, kind, list_filter(
                string_split({FOLDED.format("said")}, ' '), lambda w: w <> ''
            ) AS words
            FROM said WHERE said IS NOT NULL
        ), beginnings AS (
            SELECT entity_id, images, kind, words, unnest(range(1, least(len(words), {_MOST_WORDS}) + 1)) AS i
            FROM folded
        )
        SELECT left(array_to_string(words[i:], ' '), {_MOST_LETTERS}) AS form, entity_id,
               min(CASE WHEN i > 1 THEN 2 ELSE kind END)::UTINYINT AS kind, any_value(images) AS images
        FROM beginnings GROUP BY 1, 2
        UNION ALL SELECT 'q' || entity_id, entity_id, 3, images FROM entities
        ORDER BY form, images DESC, entity_id
        """
    )


# --- what lost to what ----------------------------------------------------------------------------------------------


def _write_confused(made: DuckDBPyConnection, weighed: Weighed | None) -> None:
    """Of each entity that was weighed for a pair and is not its label, the label that it has instead; `same_name`:
    the same words of the text can mean both."""
    made.execute(
        "CREATE TABLE raw_confused (entity_id BIGINT, other_id BIGINT, same_name BOOLEAN, pairs BIGINT, "
        "probability FLOAT, image_id UUID)"
    )
    for _, batches in weighed or ():
        made.execute(
            "CREATE TEMP TABLE of_unit (pair_id BLOB, image_id BLOB, entity_id BIGINT, probability FLOAT, "
            "mention VARCHAR, label BOOLEAN)"
        )
        for batch in batches():
            nameless = pa.nulls(batch.num_rows, pa.string())
            rows = pa.table(
                {
                    "pair_id": batch["pair_id"].cast(pa.binary()),
                    "image_id": batch["image_id"].cast(pa.binary()),
                    "entity_id": batch["entity_id"],
                    "probability": batch["probability"],
                    # Runs of earlier versions did not keep it.
                    "mention": batch["mention"] if "mention" in batch.schema.names else nameless,
                    "label": pc.is_null(batch["reason"]),
                }
            )
            made.register("arrived", rows)
            made.execute("INSERT INTO of_unit SELECT * FROM arrived")
            made.unregister("arrived")
        made.execute(
            "INSERT INTO raw_confused SELECT lost.entity_id, won.entity_id, coalesce(lower(lost.mention) = "
            "lower(won.mention), false), count(*), max(lost.probability), "
            "hex(arg_max(lost.image_id, (lost.probability, hex(lost.image_id))))::UUID "
            "FROM of_unit lost JOIN of_unit won USING (pair_id) WHERE won.label AND NOT lost.label "
            "AND lost.entity_id <> won.entity_id GROUP BY 1, 2, 3"
        )
        made.execute("DROP TABLE of_unit")
    made.execute(
        "CREATE TABLE confused AS SELECT entity_id, other_id, same_name, sum(pairs)::BIGINT AS pairs, "
        "max(probability) AS probability, arg_max(image_id, (probability, image_id)) AS image_id "
        "FROM raw_confused GROUP BY 1, 2, 3 ORDER BY entity_id, pairs DESC, other_id, same_name"
    )
    made.execute("DROP TABLE raw_confused")


# --- what is drawn to be marked -------------------------------------------------------------------------------------


def _write_drawn(made: DuckDBPyConnection, weighed: Weighed | None, threshold: float) -> None:
    """The labels that a reader is asked about, of all that were weighed, or of the published ones alone."""
    types = made.sql("SELECT entity_id, coarse_type FROM entities ORDER BY entity_id").to_arrow_table()
    pool = drawing.pooled(_typed(_published_labels(made) if weighed is None else _weighed_labels(weighed), types))
    rows = drawing.draw(pool, threshold, drawing.PLANNED)
    rows = rows.select(
        ["image_id", "entity_id", "pair_id", "unit", "shard", "row", "probability", "published", "weight"]
    )
    for name in ("image_id", "pair_id"):
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(pa.binary()))
    rows = rows.append_column("place", pa.array(np.arange(rows.num_rows)))
    made.register("arrived", rows)
    made.execute(
        "CREATE TABLE drawn AS SELECT * REPLACE (lower(hex(image_id)) AS image_id, lower(hex(pair_id)) AS pair_id) "
        "FROM arrived"
    )
    made.register("arrived", drawing.counts(pool, threshold))
    made.execute("CREATE TABLE weighed_counts AS SELECT * FROM arrived")
    made.unregister("arrived")


def _weighed_labels(weighed: Weighed) -> Iterator[pa.RecordBatch]:
    for unit, batches in weighed:
        for batch in batches():
            yield batch.append_column("unit", pa.array([unit] * batch.num_rows, pa.string()))


def _published_labels(made: DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    of_index = made.cursor().sql(
        "SELECT unhex(replace(image_id::VARCHAR, '-', '')) AS image_id, entity_id, score AS probability FROM labels"
    )
    for batch in of_index.to_arrow_reader(1 << 17):
        rows = batch.num_rows
        image_ids = batch["image_id"].cast(pa.binary(16))
        yield pa.RecordBatch.from_pydict(
            {
                "image_id": image_ids,
                "pair_id": image_ids,
                "entity_id": batch["entity_id"],
                "probability": batch["probability"],
                "reason": pa.nulls(rows, pa.string()),
                "shard": pa.nulls(rows, pa.int32()),
                "row": pa.nulls(rows, pa.int64()),
                "unit": pa.nulls(rows, pa.string()),
            }
        )


def _typed(batches: Iterator[pa.RecordBatch], types: pa.Table) -> Iterator[pa.RecordBatch]:
    """With the coarse type of each entity; types: entity_id in order, coarse_type."""
    ids, names = types["entity_id"].to_numpy(), types["coarse_type"].combine_chunks()
    for batch in batches:
        wanted = batch["entity_id"].to_numpy()
        at = np.minimum(np.searchsorted(ids, wanted), max(len(ids) - 1, 0))
        there = ids[at] == wanted if len(ids) else np.zeros(len(wanted), dtype=bool)
        yield batch.append_column("coarse_type", names.take(pa.array(at, mask=~there)))


# --- what every page says -------------------------------------------------------------------------------------------


def _write_facts(made: DuckDBPyConnection, published: Published, with_run: bool) -> None:
    def counts(sql: str) -> list[list[Any]]:
        return [list(row) for row in made.execute(sql).fetchall()]

    one = made.execute(
        "SELECT count(*) FILTER (images > 0), count(*), max(images), max(sitelinks) FROM entities"
    ).fetchone()
    assert one is not None
    told = {
        "images": published.rows,
        "labels": counts("SELECT count(*) FROM labels")[0][0],
        "entities": one[0],
        "known_entities": one[1],
        "most_images": one[2] or 0,
        "most_sitelinks": one[3],
        "with_run": with_run,
        "types": counts(
            "SELECT coarse_type, count(*) FROM entities WHERE images > 0 AND coarse_type IS NOT NULL "
            "GROUP BY 1 ORDER BY 2 DESC, 1"
        ),
        "scripts": counts("SELECT script, count(*) FROM labels GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 40"),
        "name_scripts": counts("SELECT script, count(*) FROM entities WHERE images > 0 GROUP BY 1 ORDER BY 2 DESC, 1"),
        "splits": counts("SELECT split, count(*) FROM labels WHERE split IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"),
        "domains": counts("SELECT domain, n FROM domains ORDER BY n DESC, domain LIMIT 200"),
        "scores": counts("SELECT least(floor(score * 20), 19)::INT, count(*) FROM labels GROUP BY 1 ORDER BY 1"),
        "hashed": bool(counts("SELECT count(h0) > 0 FROM images")[0][0]),
    }
    made.execute("CREATE TABLE facts (told VARCHAR)")
    made.execute("INSERT INTO facts VALUES (?)", [json.dumps(told)])
