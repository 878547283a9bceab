"""What every form of export is: which files it has, which of them are there, and how one shard is written."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.dataset.published import DatasetError, Published
from i2e_pipeline.export.shards import Rows, Shard, rows_of
from i2e_pipeline.images.formats import suffix_of
from i2e_pipeline.publish.card import exported as exported_card

CARD = "README.md"
_ID = re.compile(r"\w[\w-]*")


@dataclass(frozen=True)
class Job:
    """What is exported, and where to."""

    published: Published
    target: str
    """The folder of the export."""
    splits: tuple[str, ...]
    shard_bytes: int

    def path(self, *parts: str) -> str:
        return files.join(self.target, *parts)


class Form(ABC):
    """One form of export. Its files are known before any is written, and each counts once it has its name."""

    name: ClassVar[str]
    shard_mb: ClassVar[int] = 0
    """Default size of a shard; 0: it has none of its own."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def rows(self) -> Rows:
        return rows_of(self.job.published)

    @cached_property
    def shards(self) -> Sequence[Any]:
        """What one thread writes at a time, in the order of the rows."""
        return [s for split in self.job.splits for s in self.rows.shards(split, self.job.shard_bytes)]

    @abstractmethod
    def belongs(self, path: str) -> bool:
        """Whether a file, by its path below the export's folder, is one of the export."""

    @abstractmethod
    def is_done(self, shard: Any, there: Mapping[str, int], whole: bool) -> bool:
        """Whether a shard needs no writing.

        there   sizes in bytes of the files that the folder holds
        whole   the export has been finished before
        """

    @abstractmethod
    def write(self, shard: Any) -> None:
        """Write one shard. May be called by several threads at once."""

    @abstractmethod
    def finish(self) -> None:
        """Write what stands beside the shards. Called when all are there."""

    def digests(self, manifest: bytes) -> Mapping[str, str]:
        """Of all files by their paths, where the form lists them (core/digests.py). Called when all but the manifest,
        of which this is the content, are written."""
        return {}

    def left(self) -> Sequence[str]:
        """Files and folders, by their paths, that a finished export needs no more."""
        return ()

    def counts(self) -> dict[str, dict[str, int]]:
        """What the export holds of each split."""
        found = {split: self.rows.count(split) for split in self.job.splits}
        return {split: {"images": images, "labels": labels} for split, (images, labels) in found.items()}

    @property
    def images(self) -> int:
        return sum(counts["images"] for counts in self.counts().values())

    def manifest(self, told: dict[str, Any]) -> dict[str, Any]:
        """The dataset's manifest, and what of it is here."""
        by_split = self.counts()
        here = {"format": self.name, "splits": by_split, "shards": len(self.shards)}
        return told | {"export": here | {"images": self.images}}

    def write_card(
        self, configs: Sequence[Mapping[str, Any]], features: Mapping[str, pa.Schema] | None, usage: str
    ) -> None:
        """The dataset's card, with how the export is loaded.

        configs    Hugging Face's `configs`
        features   their columns, where the card names them; None: as the dataset's card does
        """
        published = self.job.published
        source = files.join(published.folder, CARD)
        text = files.read_bytes(source).decode() if files.exists(source) else ""
        described = f"{published.fingerprint} {self.name} {' '.join(self.job.splits)}"
        card = exported_card(text, [{**config, "description": described} for config in configs], features, usage)
        files.write_bytes(self.job.path(CARD), card.encode())

    def held(self) -> str:
        """What of the dataset is here, in a sentence of the card."""
        held = ", ".join(f"{counts['images']:,} {split}" for split, counts in self.counts().items())
        return f"This copy is an export as {self.name}, without statistics and croissant.json. Its images: {held}."

    def write_entities(self, path: str) -> None:
        with files.fresh_stream(self.job.path(path)) as stream:
            pq.write_table(self.job.published.entities, stream, compression="zstd", write_page_index=True)


def image_name(image_id: str, stored: bytes) -> str:
    """What an image's file is called: its id, with the ending of what its bytes are. Raises DatasetError for an id that
    could lead out of a folder: the dataset may be somebody else's."""
    if not _ID.fullmatch(image_id):
        raise DatasetError(f"image_id {image_id!r} is none: letters and digits are, so it names no file of an export")
    return f"{image_id}.{suffix_of(stored)}"


def named(shard: Shard) -> str:
    return f"{shard.split}-{shard.number:05d}"


def classes(path: str) -> dict[str, Any]:
    """Hugging Face's config of a copy of which `datasets` reads the classes alone."""
    return {"config_name": "entities", "data_files": path, "default": True}
