"""Is the published dataset what its manifest says? Counts, class indices, labels, images, and whom lists leave out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from i2e_pipeline.commands.verifying.faults import Mend, Verified
from i2e_pipeline.core import digests, files
from i2e_pipeline.core.config import ImageLimits
from i2e_pipeline.core.draws import mixed
from i2e_pipeline.core.errors import I2EError, first_line
from i2e_pipeline.core.ids import content_id, id_halves
from i2e_pipeline.dataset.published import ImageFile, Published, open_published
from i2e_pipeline.images import decode
from i2e_pipeline.publish.exclusion import Exclusions, near

_READ_AT_ONCE = 16
_DAMAGED = (OSError, ValueError, pa.ArrowException, I2EError)
"""What reading a Parquet file raises whose bytes are not what was written."""
_ROWS_AT_ONCE = 1024
"""Rows of images are large."""
_QUICK_FILES = 16
"""Files whose labels are looked at where not all are."""
_ROW_GROUPS = 16
"""Row groups that a sample of images is drawn from: each is read whole."""
_IDS_AT_ONCE = 1 << 25
"""Ids that are compared with each other at a time: half a gigabyte."""
_ANY_SIZE = ImageLimits(max_bytes=1 << 40, max_pixels=1 << 40, min_side=1, max_aspect=float(1 << 30))
"""Whether they fit was decided when they were published."""


@dataclass
class Dataset:
    """A published dataset that is looked at."""

    of: Published
    below: str
    """Its folder, relative to the output; empty where it lies by itself."""
    found: Verified

    def fault(self, check: str, path: str, what: str, mend: Mend, stage: str = "finish", unit: str = "") -> None:
        self.found.fault(check, files.join(self.below, path) if self.below else path, what, mend, stage, unit)

    def of_unit(self, check: str, file: ImageFile, what: str) -> None:
        self.fault(check, file.path, what, Mend.REDO, "publish", file.path.split("/")[1].removeprefix("unit="))


def opened(folder: str, below: str, found: Verified) -> Dataset | None:
    """The dataset of a folder, where manifest, footers and entities can be read and agree."""
    found.add("dataset")
    try:
        return Dataset(open_published(folder), below, found)
    except (I2EError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        found.fault("dataset", below or folder, said[0], Mend.CARD, "finish")
        return None


def listed(folder: str, found: Verified, deep: bool) -> bool:
    """The files that b2sums.txt names are there, and no others beside them; with `deep`, every byte of them is what was
    written. Returns whether there is such a list."""
    place = files.join(folder, digests.LIST)
    if not files.exists(place):
        return False
    try:
        named = digests.listed(files.read_bytes(place))
    except ValueError as error:
        found.fault("digests", digests.LIST, str(error), Mend.COPY)
        return False
    lying = {info.path for info in files.list_files(folder)}
    there = [path for path in named if path in lying]
    found.add("files", len(named))
    for path in named.keys() - lying:
        found.fault("files", path, "is not there", Mend.COPY)
    for path in _strays(lying, named):
        found.fault("files", path, f"{digests.LIST} does not name it", Mend.COPY)

    if deep:
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            read = pool.map(lambda path: digests.of_readable(files.join(folder, path)), there)
            for path, now in zip(there, read, strict=True):
                found.add("digests")
                if now != named[path]:
                    found.fault("digests", path, f"its content is not what {digests.LIST} names", Mend.COPY)
    return True


def _strays(lying: Collection[str], named: Collection[str]) -> list[str]:
    """Parquet files in the folders of others that are named. Of Delta's tables readers take what the log names."""
    folders = {path.rpartition("/")[0] for path in named}
    of_delta = {path.partition("/_delta_log/")[0] for path in lying if "/_delta_log/" in path}
    return sorted(
        path
        for path in lying
        if path.endswith(".parquet")
        and path not in named
        and path.rpartition("/")[0] in folders
        and path.partition("/unit=")[0] not in of_delta
        and not files.is_hidden(path)
    )


def counts(dataset: Dataset, labels_of: Mapping[int, int] | None) -> None:
    """What the manifest counts is what lies there.

    labels_of   labels by class index, where all were counted
    """
    manifest, entities = dataset.of.manifest, dataset.of.entities
    live = entities.filter(pc.invert(pc.fill_null(entities.column("retired"), False)))
    said = {"images": dataset.of.rows, "entities": len(live)}
    if labels_of is not None:
        said["labels"] = sum(labels_of.values())
    for name, count in said.items():
        if manifest.get(name) != count:
            what = f"says {manifest.get(name)} {name}, and {count} lie there"
            dataset.fault("dataset", "manifest.json", what, Mend.CARD)
    if labels_of is None:
        return
    classes = entities.column("class_index").to_pylist()
    of_some_splits = "export" in manifest  # with the classes of all
    for index, images in zip(classes, entities.column("images").to_pylist(), strict=True):
        bear = labels_of.get(index, 0)
        if images < bear if of_some_splits else images != bear:
            what = f"class {index} has {images} images, and {bear} bear its label"
            dataset.fault("dataset", "entities", what, Mend.REDO)
            return


def labels(dataset: Dataset, deep: bool) -> dict[int, int] | None:
    """Each label bears the class index of its entity; ids are there once. With `deep` of all images, else of some
    files. Returns labels by class index, where all were looked at."""
    of = dataset.of
    entities = of.entities.column("entity_id").to_numpy()
    if len(np.unique(entities)) != len(entities):
        dataset.fault("dataset", "entities", "an entity has two classes", Mend.REDO)
        return None
    order = np.argsort(entities)
    chosen = of.files if deep else _some(of.files)
    seen = np.zeros(len(entities), dtype=np.int64)

    def look(file: ImageFile) -> tuple[np.ndarray, str | None]:
        try:
            with of.open(file) as stored:
                column = stored.read(columns=["labels"]).column("labels").combine_chunks()
        except _DAMAGED as error:
            return np.zeros(0, dtype=np.int64), f"its labels cannot be read ({error})"
        flat = column.flatten()
        if pc.any(pc.equal(pc.list_value_length(column), 0)).as_py():
            return np.zeros(0, dtype=np.int64), "an image has no label"
        named, index = flat.field("entity_id").to_numpy(), flat.field("class_index").to_numpy()
        at = np.searchsorted(entities, named, sorter=order)
        known = at < len(order)
        place = np.full(len(named), -1)
        place[known] = order[at[known]]
        known[known] = entities[place[known]] == named[known]
        wrong = np.flatnonzero(~known | (place != index))
        said = None
        if len(wrong):
            n = wrong[0]
            said = f"{len(wrong):,} labels disagree with the class index: Q{named[n]} bears {index[n]}"
        return index, said

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for file, (index, said) in zip(chosen, pool.map(look, chosen), strict=True):
            dataset.found.add("labels", len(index))
            if said is not None:
                dataset.of_unit("labels", file, said)
            else:
                seen += np.bincount(index, minlength=len(seen))
    if deep:
        _once(dataset)
    return {int(n): int(count) for n, count in enumerate(seen)} if deep else None


def _some(all_files: Sequence[ImageFile]) -> list[ImageFile]:
    step = max(1, len(all_files) // _QUICK_FILES)
    return list(all_files[::step][:_QUICK_FILES])


def _once(dataset: Dataset) -> None:
    """No image stands twice. Ids are compared a part of their range at a time, and row groups outside of it are passed
    over: files are in the order of ids."""
    parts = 1 << max(0, int(np.ceil(np.log2(max(1, dataset.of.rows) / _IDS_AT_ONCE))))
    for part in range(parts):
        low, high = (f"{part * (1 << 32) // parts:08x}", f"{(part + 1) * (1 << 32) // parts - 1:08x}")
        ids = []
        for file in dataset.of.files:
            try:
                ids += [id_halves(column) for column in _ids_between(dataset.of, file, low, high)]
            except _DAMAGED as error:
                dataset.of_unit("labels", file, f"its ids cannot be read ({error})")
        together = np.concatenate(ids) if ids else np.empty((0, 2), dtype="<u8")
        together = together[np.lexsort((together[:, 1], together[:, 0]))]
        twice = np.flatnonzero((together[1:] == together[:-1]).all(axis=1))
        if len(twice):
            what = f"{len(twice):,} images stand twice"
            dataset.fault("labels", "images", what, Mend.REDO, "select", "all")


def _ids_between(of: Published, file: ImageFile, low: str, high: str) -> Iterator[pa.ChunkedArray]:
    with of.open(file) as stored:
        place = stored.schema_arrow.names.index("image_id")
        text = pa.types.is_string(stored.schema_arrow.field(place).type)
        for group in range(stored.metadata.num_row_groups):
            bounds = stored.metadata.row_group(group).column(place).statistics
            if (
                text
                and bounds is not None
                and bounds.has_min_max
                and not (bounds.min[:8] <= high and low <= bounds.max[:8])
            ):
                continue
            column = stored.read_row_group(group, columns=["image_id"]).column("image_id")
            if not text:
                column = pa.chunked_array([pa.array([i.hex() for i in column.to_pylist()], pa.string())])
            first = pc.utf8_slice_codeunits(column, 0, 8)
            yield column.filter(pc.and_(pc.greater_equal(first, low), pc.less_equal(first, high)))


def images(dataset: Dataset, sample: int, every: bool = False) -> None:
    """Images are what their ids say, as large as is said, and can be decoded.

    sample   so many, drawn by hash
    every    all of them are compared with their ids: where nothing else names their bytes
    """
    groups = [(f, g) for f in dataset.of.files for g in range(len(f.row_group_rows))]
    order = np.argsort(mixed(np.arange(len(groups), dtype=np.uint64)), kind="stable")
    drawn = {int(n) for n in order[:_ROW_GROUPS]} if sample else set()
    each = -(-sample // max(1, len(drawn)))
    left = sample
    for n, (file, group) in enumerate(groups):
        if n not in drawn and not every:
            continue
        most = min(each, left) if n in drawn else 0
        left -= most
        try:
            count, said = _look_at_images(dataset.of, file, group, most, every)
        except _DAMAGED as error:
            count, said = 0, f"its images cannot be read ({error})"
        dataset.found.add("images", count)
        if said is not None:
            dataset.of_unit("images", file, said)


def _look_at_images(of: Published, file: ImageFile, group: int, most: int, every: bool) -> tuple[int, str | None]:
    """How many images of a row group were looked at, of which `most` were decoded, and what is wrong with one."""
    with of.open(file) as stored:
        rows = stored.read_row_group(group, columns=["image_id", "image", "width", "height"])
    order = np.argsort(mixed(np.arange(len(rows), dtype=np.uint64)), kind="stable")[:most]
    decoded = set(order.tolist())
    looked = range(len(rows)) if every else sorted(decoded)
    for place in looked:
        (row,) = rows.slice(place, 1).to_pylist()
        if said := _image_fault(row, place in decoded):
            return len(looked), said
    return len(looked), None


def _image_fault(row: Mapping[str, object], decoded: bool) -> str | None:
    image = row["image"]
    assert isinstance(image, dict)
    stored, name = image["bytes"], row["image_id"]
    hexed = name.hex() if isinstance(name, bytes) else str(name)
    if stored is None or content_id(stored).hex() != hexed:
        return f"image {hexed} is not the one that its id names"
    if not decoded:
        return None
    seen = decode.open_rgb(stored, _ANY_SIZE)
    if isinstance(seen, decode.Rejected):
        return f"image {hexed} cannot be decoded ({seen.reason})"
    if seen[1] != (row["width"], row["height"]):
        return f"image {hexed} is {seen[1][0]} x {seen[1][1]}, and {row['width']} x {row['height']} is said of it"
    return None


def pages(dataset: Dataset) -> None:
    """Every column of every file can be read: what looks at labels and images passes over the others, and over
    statistics. Memory holds some rows of a file for each thread."""
    folder, found = dataset.of.folder, dataset.found
    listed = [info.path for info in files.list_files(folder)]
    stored = [path for path in listed if path.endswith(".parquet") and not files.is_hidden(path)]

    def look(path: str) -> str | None:
        filesystem, inner = files.open_filesystem(files.join(folder, path))
        try:
            with filesystem.open_input_file(inner) as stream:
                for _ in pq.ParquetFile(stream).iter_batches(_ROWS_AT_ONCE):
                    pass
        except _DAMAGED as error:
            return f"its pages cannot be read ({first_line(error)})"
        return None

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for path, said in zip(stored, pool.map(look, stored), strict=True):
            if said is not None:
                dataset.fault("footers", path, said, Mend.COPY)
    found.add("footers", len(stored))


def excluded(dataset: Dataset, patterns: Sequence[str]) -> None:
    """Nothing of what `select.exclude` lists is published."""
    if not patterns:
        return
    try:
        lists = Exclusions.read(patterns)
    except (I2EError, OSError) as error:
        dataset.found.notes.append(f"select.exclude cannot be read, and is not looked for: {error}")
        return

    def look(file: ImageFile) -> tuple[int, str | None]:
        wanted = ("image_id", "url", "perceptual_hash", "labels")
        try:
            with dataset.of.open(file) as stored:
                rows = stored.read(columns=[n for n in wanted if n in stored.schema_arrow.names])
            return len(rows), _listed(rows, lists)
        except _DAMAGED:  # said by who looks at labels
            return 0, None

    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        for file, (count, said) in zip(dataset.of.files, pool.map(look, dataset.of.files), strict=True):
            dataset.found.add("excluded", count)
            if said is not None:
                unit = file.path.split("/")[1].removeprefix("unit=")
                dataset.fault("excluded", file.path, said, Mend.RUN, "select", unit)


def _listed(rows: pa.Table, lists: Exclusions) -> str | None:
    ids = [i.hex() if isinstance(i, bytes) else i for i in rows.column("image_id").to_pylist()]
    of_image = np.isin(np.array(ids, dtype=object), np.array(sorted(lists.items["image_id"]), dtype=object))
    found = {"image": int(of_image.sum())}
    if "url" in rows.column_names:
        urls = rows.column("url").combine_chunks()
        found["address"] = int(
            np.isin(np.array(urls.to_pylist(), dtype=object), np.array(sorted(lists.items["url"]), dtype=object)).sum()
        )
        found["domain"] = int(lists.domains.hold(urls).sum())
    if "perceptual_hash" in rows.column_names and lists.items["perceptual_hash"]:
        hashes = [h for h in rows.column("perceptual_hash").to_pylist() if h is not None]
        binary = pa.array([bytes.fromhex(h) if isinstance(h, str) else h for h in hashes], pa.binary(32))
        found["perceptual hash"] = int(near(binary, lists.near_hashes).sum())
    labels_ = rows.column("labels").to_pylist() if lists.labels or lists.items["entity_id"] else []
    found["entity"] = sum(1 for of in labels_ for x in of if x["entity_id"] in lists.items["entity_id"])
    found["label"] = sum(
        1
        for name, of in zip(ids, labels_, strict=False)
        for x in of
        if (bytes.fromhex(name), x["entity_id"]) in lists.labels
    )
    said = [f"{count:,} by {kind}" for kind, count in found.items() if count]
    return f"select.exclude lists what is there: {', '.join(said)}" if said else None
