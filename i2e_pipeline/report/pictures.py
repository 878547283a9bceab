"""Pictures and examples of the report. Rows are chosen by their ids first; then only the chosen rows are read.

Choosing reads ids and labels of at most MAX_ROWS images. Then the row groups that hold a chosen image are read, a few
rows at a time. Each image is kept as a small JPEG inside the page, up to a budget for the whole page.
"""

from __future__ import annotations

import heapq
import ipaddress
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.ids import id_halves
from i2e_pipeline.engine.tables import Commit
from i2e_pipeline.engine.units import Units
from i2e_pipeline.images.thumbnails import Thumbnail, Thumbnails
from i2e_pipeline.inputs import formats
from i2e_pipeline.inputs.parquet import selected_rows
from i2e_pipeline.inputs.shard import ShardError
from i2e_pipeline.publish import exclusion
from i2e_pipeline.publish.exclusion import Exclusions
from i2e_pipeline.report.figures import MAX_ROWS, Dataset

_MAX_REJECTS = 500_000
"""How many rejects of a stage are searched for different examples, at most."""
_MAX_TEXT = 160
_SHORT_ID = 12
"""Hex digits of an image's id that tell it apart among 10^7 others, and among 10^9 nearly always."""

Place = tuple[str, int]
"""A published image: file, relative to the table, and row."""


@dataclass(frozen=True)
class Label:
    entity_id: int
    score: float


@dataclass(frozen=True)
class Picture:
    """A published image as the page shows it."""

    image_id: str
    thumbnail: Thumbnail
    alt_text: str
    url: str | None
    labels: tuple[Label, ...]

    @property
    def short_id(self) -> str:
        """The beginning of its id, by which `i2e explain` finds it."""
        return self.image_id[:_SHORT_ID]


@dataclass
class Choice:
    """Which images to show."""

    at_random: list[Place] = field(default_factory=list)
    least_sure: list[Place] = field(default_factory=list)
    of_entity: dict[int, list[Place]] = field(default_factory=dict)
    named: dict[str, Place] = field(default_factory=dict)
    """by image_id; those that were not found are missing"""
    seen: int = 0

    def places(self) -> Counter[Place]:
        """How often the page shows each image."""
        of_entities = (place for places in self.of_entity.values() for place in places)
        return Counter([*self.at_random, *self.least_sure, *of_entities, *self.named.values()])


def choose(
    dataset: Dataset,
    entity_ids: Iterable[int],
    per_entity: int,
    at_random: int,
    least_sure: int,
    image_ids: Iterable[str] = (),
) -> Choice:
    """Images to show: by hash over all, by lowest label score, by hash for each of the entities named, and those that
    are named themselves."""
    named = pa.array(sorted(set(image_ids)), pa.string())
    wanted = np.array(sorted(set(entity_ids)), dtype=np.int64)
    randoms: list[tuple[int, str, int]] = []
    unsure: list[tuple[float, str, int]] = []
    by_entity: dict[int, list[tuple[int, str, int]]] = defaultdict(list)
    choice = Choice()
    for commit in sorted(dataset.published["i2e/images"], key=lambda c: c.unit):
        for file in commit.files.get("i2e/images", []):
            if choice.seen >= MAX_ROWS:
                break
            filesystem, inner = files.open_filesystem(dataset.tables.path("i2e/images", file.path))
            start = 0
            with filesystem.open_input_file(inner) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(65_536, columns=["image_id", "labels"]):
                    # Rows lie in the order of the id's first bytes. Its last bytes serve as a random draw.
                    keys = id_halves(batch.column("image_id"))[:, 1]
                    labels = batch.column("labels")
                    parent = pc.list_parent_indices(labels).to_numpy()
                    flat = pc.list_flatten(labels)
                    ids = pc.struct_field(flat, "entity_id").to_numpy(zero_copy_only=False)
                    marks = pc.struct_field(flat, "score").to_numpy(zero_copy_only=False)
                    for row in np.argsort(keys, kind="stable")[:at_random].tolist():
                        _keep(randoms, at_random, (-int(keys[row]), file.path, start + row))
                    for n in np.argsort(marks, kind="stable")[:least_sure].tolist():
                        _keep(unsure, least_sure, (-float(marks[n]), file.path, start + int(parent[n])))
                    for n in np.flatnonzero(np.isin(ids, wanted)).tolist():
                        row = int(parent[n])
                        _keep(by_entity[int(ids[n])], per_entity, (-int(keys[row]), file.path, start + row))
                    if len(named):
                        is_named = pc.is_in(batch.column("image_id"), named).to_numpy(zero_copy_only=False)
                        for row in np.flatnonzero(is_named).tolist():
                            choice.named[batch.column("image_id")[row].as_py()] = (file.path, start + row)
                    start += batch.num_rows
            choice.seen += start
    choice.at_random = _places(randoms)
    choice.least_sure = _places(unsure)
    choice.of_entity = {entity: _places(heap) for entity, heap in by_entity.items()}
    return choice


def _keep(heap: list[Any], limit: int, item: Any) -> None:
    if len(heap) < limit:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)


def _places(heap: Sequence[tuple[float, str, int]]) -> list[Place]:
    """Lowest key first, each place once."""
    return list(dict.fromkeys((path, row) for _, path, row in sorted(heap, reverse=True)))


def read(
    dataset: Dataset, places: Mapping[Place, int], thumbnail: Thumbnails, first: Iterable[Place] = ()
) -> dict[Place, Picture]:
    """The chosen images. Only the row groups that hold one are read.

    places   to how often the page shows the image
    first    those that get their thumbnails before the page is full
    """
    ahead = {place: places[place] for place in first}
    rest = {place: uses for place, uses in places.items() if place not in ahead}
    return {**_read(dataset, ahead, thumbnail), **_read(dataset, rest, thumbnail)}


def _read(dataset: Dataset, places: Mapping[Place, int], thumbnail: Thumbnails) -> dict[Place, Picture]:
    by_file: dict[str, list[int]] = defaultdict(list)
    for path, row in sorted(places):
        by_file[path].append(row)
    found: dict[Place, Picture] = {}
    for path, rows in by_file.items():
        whole = dataset.tables.path("i2e/images", path)
        batches = selected_rows(whole, rows, ["image_id", "image", "url", "alt_text", "labels"])
        for row, picture in zip(rows, (r for batch in batches for r in batch.to_pylist()), strict=True):
            labels = sorted((Label(x["entity_id"], x["score"]) for x in picture["labels"]), key=lambda x: -x.score)
            found[path, row] = Picture(
                picture["image_id"],
                thumbnail(_bytes(picture["image"]), places[path, row]),
                _short(picture["alt_text"]),
                web_address(picture["url"]),
                tuple(labels),
            )
    return found


@dataclass(frozen=True)
class Example:
    """A rejected row."""

    text: str
    detail: str
    thumbnail: Thumbnail
    url: str | None = None
    pair_id: str | None = None
    """In hex, by which `i2e explain` finds it; None: the row is a text or a mention of several pairs."""


_LEFT_OUT = {str(reason) for reason in exclusion.REASONS.values()}


def rejected_examples(dataset: Dataset, per_reason: int, thumbnail: Thumbnails) -> dict[tuple[str, str], list[Example]]:
    """A few rejected rows by stage and reason. Only units with rejects of a reason that still lacks examples are read.

    Texts come from the table of texts, or from the input files where those are still there and unchanged. What
    `select.exclude` lists is no example, and neither is a row that was rejected for it.
    """
    lists = Exclusions.read(dataset.config.select.exclude)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for stage in dataset.stages:
        looked_at = 0
        for commit in dataset.commits(stage):
            shown = [r for r in commit.rejected if r not in _LEFT_OUT]
            wanted = {r for r in shown if len(rows.get((stage.name, r), [])) < per_reason}
            if wanted and looked_at < _MAX_REJECTS:
                looked_at += _take_rejects(dataset, commit, wanted, per_reason, rows)
    by_text = {s.name for s in dataset.stages if s.passes is not None and s.passes.key[0] == "text_id"}
    texts = _texts(dataset, [r for (stage, _), rs in rows.items() if stage in by_text for r in rs])
    inputs = _inputs(dataset, [r for rs in rows.values() for r in rs])
    found: dict[tuple[str, str], list[Example]] = {}
    for key, chosen in rows.items():
        for row in chosen:
            text, image, url = inputs.get((row["shard"], row["row"]), (None, None, None))
            if lists and lists.name(url, image, entity_ids_in(row["detail"] or "")):
                continue
            text = text or texts.get(row["id"])
            pair_id = row["id"].hex() if row["id"] is not None and row["shard"] is not None else None
            example = Example(_short(text), row["detail"] or "", thumbnail(image), web_address(url), pair_id)
            found.setdefault(key, []).append(example)
    return found


def _take_rejects(
    dataset: Dataset,
    commit: Commit,
    wanted: set[str],
    per_reason: int,
    rows: dict[tuple[str, str], list[dict[str, Any]]],
) -> int:
    """Add rejects of a commit until each wanted reason has its examples or enough rows were searched. Returns how
    many."""
    seen = {(reason, r["detail"]) for (_, reason), rs in rows.items() for r in rs if r["detail"]}
    left, looked_at = set(wanted), 0
    for batch in dataset.tables.batches("rejects", [commit], ("reason", "id", "shard", "row", "detail")):
        for reason in sorted(left):
            of_reason = batch.filter(pc.equal(batch.column("reason"), reason)).slice(0, 16 * per_reason)
            have = rows.setdefault((commit.stage, reason), [])
            for row in of_reason.to_pylist():
                if (reason, row["detail"]) in seen or len(have) >= per_reason:
                    continue
                have.append({**row, "unit": commit.unit})
                if row["detail"]:
                    seen.add((reason, row["detail"]))
            if len(have) >= per_reason:
                left.discard(reason)
        looked_at += batch.num_rows
        if not left or looked_at >= _MAX_REJECTS:
            break
    return looked_at


def _texts(dataset: Dataset, rejects: Sequence[Mapping[str, Any]]) -> dict[bytes, str]:
    """Texts by id, of the rejects' units."""
    by_unit: dict[str, set[bytes]] = defaultdict(set)
    for row in rejects:
        if row["id"] is not None:
            by_unit[row["unit"]].add(row["id"])
    found: dict[bytes, str] = {}
    for commit in dataset.commits_of("texts"):
        ids = pa.array(sorted(by_unit.get(commit.unit, ())), pa.binary(16))
        if len(ids):
            for batch in dataset.tables.batches("texts", [commit], ("text_id", "text")):
                rows = batch.filter(pc.is_in(batch.column("text_id"), ids))
                found |= dict(zip(rows.column("text_id").to_pylist(), rows.column("text").to_pylist(), strict=True))
    return found


def _inputs(
    dataset: Dataset, rejects: Sequence[Mapping[str, Any]]
) -> dict[tuple[int, int], tuple[str | None, bytes | None, str | None]]:
    """Text, image and url of input rows; those whose file is gone or changed are left out."""
    by_shard: dict[int, set[int]] = defaultdict(set)
    for row in rejects:
        if row["shard"] is not None and row["row"] is not None:
            by_shard[row["shard"]].add(row["row"])
    if not by_shard:
        return {}
    pairs = dataset.config.pairs
    columns = [c for c in (pairs.text_column, pairs.url_column) if c]
    registry = Units(dataset.config.output)
    shards = {f.shard: registry.shard(f, pairs) for unit in registry.known() for f in unit.files}
    found = {}
    for shard, wanted in sorted(by_shard.items()):
        rows = sorted(wanted)
        try:
            opened = shards[shard]
            parts = [formats.texts(opened, batch)[0] for batch in formats.rows(opened, rows, columns)]
            with formats.images(opened) as images:
                stored = list(images.read(rows))
        except (KeyError, OSError, ShardError, pa.ArrowException):
            continue
        for at, row, image in zip(rows, (r for part in parts for r in part.to_pylist()), stored, strict=True):
            url = row[pairs.url_column] if pairs.url_column else None
            found[shard, at] = (row[pairs.text_column], image if isinstance(image, bytes) else None, url)
    return found


def entity_ids_in(detail: str) -> list[int]:
    """Entities that a reject's detail names, as Q and a number."""
    return [int(number) for number in re.findall(r"\bQ([1-9]\d{0,17})\b", detail)]


def _bytes(image: Any) -> bytes | None:
    stored = image.get("bytes") if isinstance(image, dict) else image
    return stored if isinstance(stored, bytes) else None


_NOWHERE = re.compile(
    r"(^|\.)(example(\.(com|net|org))?|invalid|test|localhost|local|internal|home\.arpa|lan|onion|alt)$"
)
"""Names that are nobody's in the web (RFC 2606, 6761, 6762, 7686, 8375, 9476), and ICANN's .internal. The sample's
addresses are made up, below example.org."""


def web_address(url: Any) -> str | None:
    """The address if it can lead to a place in the web, else None: no link is made of a `javascript:` address, and none
    that is sure to be dead."""
    if not isinstance(url, str) or not re.match(r"https?://", url):
        return None
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return None
    try:
        return url if ipaddress.ip_address(host).is_global else None
    except ValueError:
        return url if "." in host.strip(".") and not _NOWHERE.search(host) else None


def _short(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1].rstrip() + "…"
