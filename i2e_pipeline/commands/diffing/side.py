"""One of two datasets that are compared, and what is read of it. No Spark.

Reads    of the dataset image_id, pair_id, split and of labels entity_id and score, never the images; entities,
         statistics/entities · of the run beside it labels, pairs, rejects, kb/entities, kb/redirects, each once and
         only the rows that are asked for kept

A run's tables are asked where they are those that the dataset was made of: another run may have begun since.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.commands.diffing.buckets import Sieve, Spill, ids_of
from i2e_pipeline.commands.diffing.causes import FATE, PASSED, VERDICTS, WEIGHED, Knowledge
from i2e_pipeline.commands.diffing.compare import IMAGE, LABEL, SPLITS
from i2e_pipeline.core import files
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.secrets import hide
from i2e_pipeline.dataset.published import DatasetError, ImageFile, Published, open_parquet, open_published, part_files
from i2e_pipeline.engine.stage import Run
from i2e_pipeline.engine.tables import Commit
from i2e_pipeline.publish import exclusion

log = logging.getLogger(__name__)

_READ_AT_ONCE = 16
_ROWS_AT_ONCE = 65_536
_DAMAGED = (OSError, pa.ArrowException)
_T = TypeVar("_T")


@dataclass
class Side:
    letter: str
    """A or B, as messages name it."""
    published: Published
    run: Run | None
    """Whose tables lie beside it; None: none, or none that can be asked."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, letter: str, dataset: str, run: Run | None) -> Side:
        """The dataset in a folder. Raises DatasetError where it is none, or not whole."""
        side = cls(letter, open_published(dataset), run)
        if run is not None and not _is_of(run, side.published):
            side.run = None
            side.notes.append(f"the tables beside {letter} are of another run than the dataset, and are not asked")
        return side

    @property
    def name(self) -> str:
        return hide(self.published.folder)

    def commits(self, table: str) -> list[Commit]:
        """Those of the units of the dataset; none where there are no tables."""
        if self.run is None:
            return []
        writer = self.run.writer(table)
        of_all, units = self.run.commits.get(writer.name, {}), self.published.manifest["units"]
        return [c for unit, c in of_all.items() if writer.scope != "unit" or unit in units]


def _is_of(run: Run, published: Published) -> bool:
    """Whether the tables are those that the dataset was made of: the last stage before it depends on all others."""
    selecting = run.writer("selection").name
    said = published.manifest.get("fingerprints", {}).get(selecting)
    return said is not None and [c.fingerprint for c in run.commits.get(selecting, {}).values()] == [said]


# --- the dataset ---------------------------------------------------------------------------------------------------


def read_dataset(side: Side, images: Spill, labels: Spill) -> np.ndarray:
    """Deal out all images (IMAGE) and their labels (LABEL). Returns the number of images by class index.

    Memory holds a batch of rows for each thread. Raises DatasetError for a label of no entity of the dataset.
    """
    entities = side.published.entities.column("entity_id").to_numpy()
    order = np.argsort(entities)
    counts = np.zeros(len(entities), dtype=np.int64)

    def read(file: ImageFile) -> np.ndarray:
        mine = np.zeros(len(entities), dtype=np.int64)
        place = files.join(side.published.folder, file.path)
        try:
            for batch in _image_batches(side.published, file):
                rows, of_rows = image_records(batch)
                at = np.searchsorted(entities, of_rows["entity"], sorter=order)
                at = order[np.minimum(at, len(order) - 1)]
                wrong = np.flatnonzero(entities[at] != of_rows["entity"])
                if len(wrong):
                    raise DatasetError(
                        f"{place}: a label names Q{of_rows['entity'][wrong[0]]}, which the entities have not: images "
                        "and entities are of two builds; build or copy the dataset again"
                    )
                np.add.at(mine, at, 1)
                images.add(rows)
                labels.add(of_rows)
        except _DAMAGED as error:
            raise DatasetError(f"{place}: {error}: `i2e verify` says what is damaged") from error
        return mine

    for mine in _side_by_side(read, side.published.files):
        counts += mine
    return counts


def _image_batches(published: Published, file: ImageFile) -> Iterator[pa.RecordBatch]:
    with published.open(file) as stored:
        paths = [stored.schema.column(n).path for n in range(len(stored.schema))]
        of_labels = [p for p in paths if p.startswith("labels.") and p.endswith((".entity_id", ".score"))]
        own = [name for name in ("image_id", "pair_id", "split") if name in stored.schema_arrow.names]
        yield from stored.iter_batches(_ROWS_AT_ONCE, columns=[*own, *of_labels], use_threads=False)


def image_records(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Rows of i2e/images, without the images, as IMAGE and LABEL."""
    rows = np.zeros(batch.num_rows, dtype=IMAGE)
    rows["id"] = ids_of(batch.column("image_id"))
    rows["split"] = len(SPLITS) - 1
    if "pair_id" in batch.schema.names:
        pairs = batch.column("pair_id")
        rows["has_pair"] = pc.is_valid(pairs).to_numpy(zero_copy_only=False)
        rows["pair"][rows["has_pair"]] = ids_of(pairs.drop_null())
    if "split" in batch.schema.names:
        said = pc.index_in(batch.column("split"), pa.array(SPLITS)).fill_null(len(SPLITS) - 1)
        rows["split"] = said.to_numpy(zero_copy_only=False)
    lists = batch.column("labels")
    flat = pc.list_flatten(lists)
    labels = np.empty(len(flat), dtype=LABEL)
    labels["id"] = rows["id"][pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)]
    labels["entity"] = pc.struct_field(flat, "entity_id").to_numpy(zero_copy_only=False)
    labels["score"] = pc.struct_field(flat, "score").to_numpy(zero_copy_only=False)
    return rows, labels


def labelled(side: Side, entities: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Those of some entities that any text proposed, and how many pairs were labelled with each; None where the dataset
    came without its statistics."""
    table = files.join(side.published.folder, "statistics", "entities")
    if not files.exists(table):
        return None
    found = [np.empty((0, 2), dtype=np.int64)]
    for path in part_files(table):
        with open_parquet(files.join(table, path)) as file:
            rows = file.read(columns=["entity_id", "pairs_labelled"])
        known = np.stack([column.to_numpy() for column in rows.columns], axis=1)
        found.append(known[np.isin(known[:, 0], entities)])
    ids, pairs = np.concatenate(found).T
    return ids, pairs


# --- the tables of its run -----------------------------------------------------------------------------------------


def read_weighed(side: Side, sieve: Sieve, weighed: Spill) -> None:
    """Deal out what was weighed (WEIGHED) of the images that the sieve lets through."""
    columns = ["image_id", "pair_id", "entity_id", "probability", "reason"]

    def read(commit: Commit) -> None:
        for batch in _batches(side, "labels", commit, columns):
            ids = ids_of(batch.column("image_id"))
            asked = sieve.lets(ids)
            rows = np.empty(int(asked.sum()), dtype=WEIGHED)
            batch = batch.filter(pa.array(asked))
            rows["id"], rows["pair"] = ids[asked], ids_of(batch.column("pair_id"))
            for name, column in (("entity", "entity_id"), ("probability", "probability")):
                rows[name] = batch.column(column).to_numpy(zero_copy_only=False)
            rows["verdict"] = _verdicts(batch.column("reason"))
            weighed.add(rows)

    for _ in _side_by_side(read, side.commits("labels")):
        pass


def _verdicts(reasons: pa.Array) -> np.ndarray:
    said = pc.index_in(reasons, pa.array(VERDICTS[1:])).fill_null(len(VERDICTS) - 1).to_numpy(zero_copy_only=False) + 1
    return np.where(pc.is_null(reasons).to_numpy(zero_copy_only=False), 0, said)


@dataclass(frozen=True)
class Fates:
    """What may become of a pair: the reasons of the stages, in their order."""

    names: list[str]
    by_stage: dict[str, dict[str, int]]

    @classmethod
    def of(cls, run: Run | None) -> Fates:
        names = list(Knowledge(np.empty(0, dtype=np.int64)).fates)
        by_stage: dict[str, dict[str, int]] = {}
        for stage in run.stages if run is not None else ():
            if stage.rows_are != "pairs":
                continue
            by_stage[stage.name] = {}
            for reason in sorted(map(str, stage.reasons)):
                if reason in names:
                    by_stage[stage.name][reason] = names.index(reason)
                else:
                    by_stage[stage.name][reason] = len(names)
                    names.append(reason)
        return cls(names, by_stage)


def read_fates(side: Side, fates: Fates, sieve: Sieve, into: Spill) -> None:
    """Deal out what became (FATE) of the pairs that the sieve lets through."""
    if side.run is None:
        return

    def note(ids: np.ndarray, fate: np.ndarray | int) -> None:
        asked = sieve.lets(ids)
        rows = np.empty(int(asked.sum()), dtype=FATE)
        rows["pair"] = ids[asked]
        rows["fate"] = fate[asked] if isinstance(fate, np.ndarray) else fate
        into.add(rows)

    def read_pairs(commit: Commit) -> None:
        for batch in _batches(side, "pairs", commit, ["pair_id"]):
            note(ids_of(batch.column("pair_id")), PASSED)

    def read_rejects(commit: Commit) -> None:
        code = fates.by_stage[commit.stage]
        for batch in _batches(side, "rejects", commit, ["id", "reason"]):
            batch = batch.filter(pc.is_valid(batch.column("id")))  # of purged pairs nothing is left
            said = pc.index_in(batch.column("reason"), pa.array(list(code), pa.string())).fill_null(len(code))
            fate = np.array([*code.values(), PASSED])[said.to_numpy(zero_copy_only=False)]
            note(ids_of(batch.column("id")), fate)

    units = side.published.manifest["units"]
    rejecting = [
        commit
        for name in fates.by_stage
        for unit, commit in side.run.commits.get(name, {}).items()
        if side.run.stage(name).scope != "unit" or unit in units
    ]
    for _ in _side_by_side(read_pairs, side.commits("pairs")):
        pass
    for _ in _side_by_side(read_rejects, rejecting):
        pass


def knowledge(side: Side, fates: Fates, entities: np.ndarray) -> Knowledge:
    """What is known of a dataset beside its images, of entities only what concerns these."""
    manifest, table = side.published.manifest, side.published.entities
    settings = {name: of for name, of in manifest.get("settings", {}).items() if isinstance(of, dict)}
    retired = table.column("retired").to_numpy(zero_copy_only=False)
    bar = manifest.get("labels_chosen_by", {}).get("bar")
    known = Knowledge(
        live=table.column("entity_id").to_numpy()[~retired],
        has_tables=side.run is not None,
        fates=fates.names,
        bar=float(bar) if isinstance(bar, int | float) else None,
    )
    if side.run is None:
        return known
    selected = settings.get(side.run.writer("selection").name, {})
    most = selected.get("max_labels_per_image")
    known = replace(
        known,
        max_labels=most if isinstance(most, int) else None,
        capped=selected.get("max_images_per_entity") is not None,
        purged=bool(manifest.get("purged")),
    )
    return _excluded(side, _knowledge_base(side, known, entities), selected.get("excluded"))


def _knowledge_base(side: Side, known: Knowledge, entities: np.ndarray) -> Knowledge:
    commits = side.commits("kb/entities")
    if not commits:
        return known
    found = [np.empty(0, dtype=np.int64)]
    for batch in _of_all(side, "kb/entities", commits, ["entity_id"]):
        ids = batch.column("entity_id").to_numpy()
        found.append(ids[np.isin(ids, entities)])
    merged = [np.empty((0, 2), dtype=np.int64)]
    has_redirects = all("kb/redirects" in commit.files for commit in commits)  # older outputs have none
    for batch in _of_all(side, "kb/redirects", commits, ["entity_id", "into"]) if has_redirects else ():
        pair = np.stack([batch.column(n).to_numpy(zero_copy_only=False) for n in ("entity_id", "into")], axis=1)
        merged.append(pair[np.isin(pair, entities).all(axis=1)].astype(np.int64))
    return replace(known, entities=np.concatenate(found), merged=np.concatenate(merged))


def _excluded(side: Side, known: Knowledge, named: Any) -> Knowledge:
    """With what the run's lists left out, where they can be read and are those that it read."""
    if named is None or side.run is None:
        return known
    patterns = side.run.config.select.exclude
    try:
        if digest(sorted(exclusion.fingerprints(patterns))) != named:
            raise DatasetError("they are not what the run read")
        lists = exclusion.Exclusions.read(patterns)
    except (I2EError, OSError) as error:
        side.notes.append(f"the lists of what {side.letter} leaves out (select.exclude) are not asked: {error}")
        return known
    labels = sorted(lists.labels)
    ids = pa.array([image for image, _ in labels], pa.binary(16))
    return replace(
        known,
        excluded_entities=np.array(sorted(lists.items["entity_id"]), dtype=np.int64),
        excluded_labels=(ids_of(ids), np.array([entity for _, entity in labels], dtype=np.int64)),
    )


def _of_all(side: Side, table: str, commits: Iterable[Commit], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for commit in commits:
        yield from _batches(side, table, commit, columns)


def _batches(side: Side, table: str, commit: Commit, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    assert side.run is not None
    try:
        yield from side.run.tables.batches(table, [commit], columns)
    except _DAMAGED as error:
        raise DatasetError(
            f"{hide(side.run.tables.path(table))}, beside {side.letter}, cannot be read ({error}): `i2e verify` says "
            "what is damaged"
        ) from error


def _side_by_side(work: Callable[[Any], _T], parts: Sequence[Any]) -> Iterator[_T]:
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        yield from pool.map(work, parts)
