"""Who is left out of the dataset: lists of addresses, domains, images, perceptual hashes, entities, and labels that
somebody marked as wrong (select.exclude).

A list is a table (Parquet, CSV, TSV, JSON lines) with columns of the names in KINDS, or a text file with one item a
line, whose kind its form says: an address with its scheme, Q42, 32 or 64 hex digits for an image or a perceptual hash,
else a domain. What cannot be read is an error with file and line: a request for removal that is passed over unseen is
worse than a run that stops.

JSON lines that have a `mark` are marks of single labels (inputs/marks.py). Those that are marked wrong, or as another
entity, are left out; the image and its other labels stay.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from i2e_pipeline.core import domains, files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.domains import Domains
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.schemas import Reason
from i2e_pipeline.images.near_hashes import BYTES, NearHashes
from i2e_pipeline.inputs import marks

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from i2e_pipeline.engine.stage import Run

KINDS = ("url", "domain", "image_id", "perceptual_hash", "entity_id")
REASONS = {
    "url": Reason.EXCLUDED_URL,
    "domain": Reason.EXCLUDED_DOMAIN,
    "image_id": Reason.EXCLUDED_IMAGE,
    "perceptual_hash": Reason.EXCLUDED_HASH,
    "entity_id": Reason.EXCLUDED_ENTITY,
}
_QID = re.compile(r"[Qq]?([1-9]\d{0,18})\Z")


class ExclusionError(I2EError, ValueError):
    """A list that cannot be read; the message names file and line, or row."""


@dataclass
class Exclusions:
    """What the lists name, each kind by its items: strings, hashes as hex digits, entities as numbers."""

    items: dict[str, set[Any]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    labels: set[tuple[bytes, int]] = field(default_factory=set)
    """image_id and entity_id of labels that are marked as wrong."""

    def __bool__(self) -> bool:
        return bool(self.labels) or any(self.items.values())

    @cached_property
    def near_hashes(self) -> NearHashes:
        """The perceptual hashes, to be asked; the lists are read by then."""
        return listed_hashes(self.items["perceptual_hash"])

    @cached_property
    def domains(self) -> Domains:
        """The domains, to be asked; the lists are read by then."""
        return Domains(self.items["domain"])

    @classmethod
    def read(cls, patterns: Sequence[str]) -> Exclusions:
        """Raises ExclusionError for what is no list, MarkError for what is no mark, NoSuchFile for a pattern that names
        nothing."""
        found = cls()
        for file in files.find(patterns, "") if patterns else ():
            if _holds_marks(file.path):
                found.labels |= _wrong_labels(file.path)
                continue
            for kind, value, where in _items(file.path):
                found.items[kind].add(_checked(kind, value, f"{file.path}, {where}"))
        return found

    def name(self, url: str | None, image: bytes | None, entities: Sequence[int] = ()) -> bool:
        """Whether the lists name a row by its address, its stored image, or an entity."""
        if url is not None and (url in self.items["url"] or self.domains.hold(pa.array([url]))[0]):
            return True
        if not self.items["entity_id"].isdisjoint(entities):
            return True
        return image is not None and content_id(image).hex() in self.items["image_id"]


def fingerprints(patterns: Sequence[str]) -> list[str]:
    """What names the content of each list; of marks, that of the labels which they leave out, so that further right
    ones change nothing."""
    found = []
    for file in files.find(patterns, "") if patterns else ():
        if not _holds_marks(file.path):
            found.append(files.fingerprint(file.path))
        elif wrong := _wrong_labels(file.path):
            found.append(digest(sorted([image.hex(), entity] for image, entity in wrong)))
    return found


def _holds_marks(path: str) -> bool:
    """Whether the first line that a file of JSON lines has is a mark."""
    if path.lower().rpartition(".")[2] not in ("jsonl", "ndjson"):
        return False
    for line in files.read_bytes(path).split(b"\n"):
        if line.strip():
            try:
                said = json.loads(line)
            except ValueError:  # a torn mark, or no JSON at all, which the reader of lists names
                continue
            return isinstance(said, dict) and "mark" in said
    return False


def _wrong_labels(path: str) -> set[tuple[bytes, int]]:
    rows = marks.read(path).select(["image_id", "entity_id", "mark"]).to_pylist()
    return {(r["image_id"], r["entity_id"]) for r in rows if r["mark"] in (marks.WRONG, marks.OTHER)}


def _items(path: str) -> Iterator[tuple[str, Any, str]]:
    """kind, value and place of each item of a file."""
    content = files.read_bytes(path)
    form = path.lower().rpartition(".")[2]
    if form == "txt":
        for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
            item = line.strip()
            if item and not item.startswith("#"):
                yield _kind(item), item, f"line {number}"
        return
    try:
        if form == "parquet":
            table = pq.read_table(io.BytesIO(content))
        elif form in ("csv", "tsv"):
            table = _separated(content, "\t" if form == "tsv" else ",")
        elif form in ("jsonl", "ndjson", "json"):
            table = pajson.read_json(io.BytesIO(content))
        else:
            raise ExclusionError(f"{path}: a list is .txt, .csv, .tsv, .jsonl or .parquet")
    except pa.ArrowInvalid as error:
        raise ExclusionError(f"{path} is not what its name says: {error}") from None
    named = [name for name in table.column_names if name in KINDS]
    if not named:
        raise ExclusionError(
            f"{path} has no column {', '.join(KINDS)}: it has {', '.join(table.column_names)}. Name a column so, or "
            "write one item a line into a .txt"
        )
    for name in named:
        for number, value in enumerate(table[name].to_pylist(), 1):
            if value is not None and value != "":
                yield name, value, f"row {number}"


def _separated(content: bytes, delimiter: str) -> pa.Table:
    head = content[: content.find(b"\n") if b"\n" in content else len(content)].decode("utf-8-sig", "replace")
    as_text = pacsv.ConvertOptions(
        column_types={name.strip().strip('"'): pa.string() for name in head.split(delimiter)}
    )
    return pacsv.read_csv(
        io.BytesIO(content), parse_options=pacsv.ParseOptions(delimiter=delimiter), convert_options=as_text
    )


def _kind(item: str) -> str:
    if "://" in item:
        return "url"
    if re.fullmatch(r"[0-9a-fA-F]{32}", item):
        return "image_id"
    if re.fullmatch(r"[0-9a-fA-F]{64}", item):
        return "perceptual_hash"
    return "entity_id" if re.fullmatch(r"[Qq][1-9]\d*", item) else "domain"


def _checked(kind: str, value: Any, where: str) -> Any:
    """An item as it is compared."""
    text = value.hex() if isinstance(value, bytes) else str(value).strip()
    if kind == "url":
        return text
    if kind == "domain":
        try:
            return domains.checked(text)
        except ValueError:
            raise ExclusionError(
                f"{where}: {text!r} is no domain (example.org), address, Q-id or id in hex digits"
            ) from None
    if kind == "entity_id":
        number = _QID.match(text)
        if not number:
            raise ExclusionError(f"{where}: {text!r} is no entity: Q42, or 42")
        return int(number[1])
    digits = 32 if kind == "image_id" else 64
    if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", text):
        raise ExclusionError(f"{where}: {text!r} is no {kind}: {digits} hex digits are")
    return text.lower()


def near(hashes: pa.Array, listed: NearHashes) -> np.ndarray:
    """Which hashes (binary(32)) differ from a listed one in NEAR_BITS bits or fewer."""
    content = b"".join(pc.cast(hashes, pa.binary()).to_pylist())
    found = np.zeros(len(hashes), dtype=bool)
    found[listed.find(np.frombuffer(content, dtype=np.uint8).reshape(-1, BYTES))[0]] = True
    return found


def listed_hashes(listed: set[str]) -> NearHashes:
    """Hashes in hex digits, to be asked."""
    return NearHashes(np.frombuffer(bytes.fromhex("".join(sorted(listed))), dtype=np.uint8).reshape(-1, BYTES))


def excluded_pairs(run: Run, chosen: DataFrame, lists: Exclusions) -> DataFrame:
    """unit, pair_id, reason: the labelled pairs that are left out, whichever entities their labels name, each once.

    chosen   the labels: unit, pair_id, image_id, entity_id, reason (null)
    Of several reasons the first by name stands.
    """
    from pyspark.sql import functions as F

    of_pair = ["unit", "pair_id"]
    pairs = chosen.select(*of_pair, "image_id").distinct()
    found = run.spark.createDataFrame([], "unit string, pair_id binary, reason string")
    if lists.items["url"] or lists.items["domain"]:
        addresses = run.read("pairs", columns=["pair_id", "url", "unit"]).join(pairs, of_pair, how="left_semi")
        urls = run.spark.createDataFrame([(url,) for url in sorted(lists.items["url"])], "url string")
        named = addresses.join(urls, "url", how="left_semi")
        found = found.unionByName(named.select(*of_pair, F.lit(str(Reason.EXCLUDED_URL)).alias("reason")))
        kernel = partial(_domain_reasons, domains=lists.items["domain"])
        found = found.unionByName(addresses.mapInArrow(kernel, found.schema))
    if lists.items["image_id"]:
        ids = run.spark.createDataFrame(
            [(bytes.fromhex(i),) for i in sorted(lists.items["image_id"])], "image_id binary"
        )
        here = pairs.join(ids, "image_id", how="left_semi")
        found = found.unionByName(here.select(*of_pair, F.lit(str(Reason.EXCLUDED_IMAGE)).alias("reason")))
    if lists.items["perceptual_hash"]:
        hashes = (
            run.read("scores", columns=["pair_id", "image_hash", "unit"]).where("image_hash is not null").distinct()
        )
        kernel = partial(_hash_reasons, listed=lists.items["perceptual_hash"])
        found = found.unionByName(hashes.join(pairs, of_pair, how="left_semi").mapInArrow(kernel, found.schema))
    if lists.items["entity_id"]:
        others = chosen.join(_entities(run, lists), "entity_id", how="left_anti").select(*of_pair)
        bare = pairs.join(others, of_pair, how="left_anti")
        found = found.unionByName(bare.select(*of_pair, F.lit(str(Reason.EXCLUDED_ENTITY)).alias("reason")))
    if lists.labels:
        left = struck(run, without_entities(run, chosen, lists), lists).where(F.col("reason").isNull())
        bare = pairs.join(left.select(*of_pair), of_pair, how="left_anti")
        found = found.unionByName(bare.select(*of_pair, F.lit(str(Reason.EXCLUDED_LABEL)).alias("reason")))
    return found.groupBy(*of_pair).agg(F.min("reason").alias("reason"))


def without_entities(run: Run, labels: DataFrame, lists: Exclusions) -> DataFrame:
    """Labels (entity_id) without those of entities that are left out."""
    return labels.join(_entities(run, lists), "entity_id", how="left_anti") if lists.items["entity_id"] else labels


def struck(run: Run, labels: DataFrame, lists: Exclusions) -> DataFrame:
    """Labels (image_id, entity_id, reason) with the reason excluded_label where they were chosen and marked as wrong,
    under an id that the entity has today or had before it was merged."""
    from pyspark.sql import functions as F

    if not lists.labels:
        return labels
    wrong = run.spark.createDataFrame(sorted(lists.labels), "image_id binary, entity_id long")
    of_all_stages = replace(run, reader=None)
    if of_all_stages.rows("kb/redirects"):
        led = of_all_stages.read("kb/redirects").join(F.broadcast(wrong), "entity_id", how="left_semi")
        from wikidata import merges  # it cannot be read without Spark

        wrong = merges.followed(wrong, led)
    marked = F.broadcast(wrong.distinct().withColumn("marked", F.lit(True)))
    reason = F.when(F.col("reason").isNull() & F.col("marked"), F.lit(str(Reason.EXCLUDED_LABEL)))
    return (
        labels.join(marked, ["image_id", "entity_id"], how="left")
        .withColumn("reason", reason.otherwise(F.col("reason")))
        .select(*labels.columns)
    )


def nameless(run: Run, statistics: DataFrame, lists: Exclusions, columns: Sequence[str]) -> DataFrame:
    """Rows of ENTITY_STATISTICS; of an entity that is left out the index stays, as of every entity that had one, and
    nothing else but its number."""
    from pyspark.sql import functions as F

    if not lists.items["entity_id"]:
        return statistics
    hidden = _entities(run, lists).withColumn("hidden", F.lit(True))
    joined = statistics.join(hidden, "entity_id", how="left")
    number = F.concat(F.lit("Q"), F.col("entity_id").cast("string"))
    emptied = {
        name: F.when(F.col("hidden"), number if name == "name" else F.lit(None)).otherwise(F.col(name))
        for name in columns
    }
    return joined.withColumns(emptied).drop("hidden")


def _entities(run: Run, lists: Exclusions) -> DataFrame:
    return run.spark.createDataFrame([(e,) for e in sorted(lists.items["entity_id"])], "entity_id long")


def _domain_reasons(batches: Iterator[pa.RecordBatch], domains: set[str]) -> Iterator[pa.RecordBatch]:
    listed = Domains(domains)
    for batch in batches:
        yield _with_reason(batch, listed.hold(batch.column("url")), Reason.EXCLUDED_DOMAIN)


def _hash_reasons(batches: Iterator[pa.RecordBatch], listed: set[str]) -> Iterator[pa.RecordBatch]:
    asked = listed_hashes(listed)
    for batch in batches:
        yield _with_reason(batch, near(batch.column("image_hash"), asked), Reason.EXCLUDED_HASH)


def _with_reason(batch: pa.RecordBatch, mask: np.ndarray, reason: Reason) -> pa.RecordBatch:
    told = batch.filter(pa.array(mask)).select(["unit", "pair_id"])
    return told.append_column("reason", pa.array([str(reason)] * told.num_rows, pa.string()))
