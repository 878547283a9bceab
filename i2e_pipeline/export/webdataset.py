"""WebDataset: tars of samples, an image with a .txt and a .json, as `webdataset` and open_clip's training read them.

<split>/00000.tar · <split>/sizes.json (samples of each tar) · entities.parquet

A sample is called by its image_id: a key of the source may be missing, stand twice, or hold dots and slashes, which
end the name of a sample. Python's tarfile writes them, since it needs no seek and so writes to a store as to a disk.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from functools import cached_property

import msgspec
import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.export.form import CARD, Form, classes, image_name
from i2e_pipeline.export.shards import Shard

_SIZES, _ENTITIES = "sizes.json", "entities.parquet"
_COPIED = 1 << 20
_USAGE = """\
{held}

```python
import webdataset as wds

shards = wds.WebDataset("PATH/i2e/{split}/{{00000..{last:05d}}}.tar", shardshuffle=False)
for image, text, row in shards.decode("pil").to_tuple("jpg;png;webp", "txt", "json"):
    ...
```

Each sample is called by its image_id and has the image as it was stored, the alt-text (.txt) and the other columns of
its row (.json). `sizes.json` beside the tars says how many samples each has; `entities.parquet` are the classes.
"""


class WebDataset(Form):
    name, shard_mb = "webdataset", 256

    @staticmethod
    def path(shard: Shard) -> str:
        return f"{shard.split}/{shard.number:05d}.tar"

    def belongs(self, path: str) -> bool:
        return path in self._paths or path in (CARD, _ENTITIES, *(f"{s}/{_SIZES}" for s in self._by_split))

    @cached_property
    def _by_split(self) -> dict[str, list[Shard]]:
        found: dict[str, list[Shard]] = {}
        for shard in self.shards:
            found.setdefault(shard.split, []).append(shard)
        return found

    @cached_property
    def _paths(self) -> set[str]:
        return {self.path(shard) for shard in self.shards}

    def is_done(self, shard: Shard, there: Mapping[str, int], whole: bool) -> bool:
        return self.path(shard) in there

    def write(self, shard: Shard) -> None:
        place = self.job.path(self.path(shard))
        with (
            files.fresh_stream(place) as stream,
            # typeshed does not know `copybufsize`; by itself it is 16 KB.
            tarfile.open(  # type: ignore[call-overload]
                fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT, copybufsize=_COPIED
            ) as tar,
        ):
            for batch in self.rows.read(shard):
                for name, content in members(batch):
                    tar.addfile(_header(name, len(content)), io.BytesIO(content))

    def finish(self) -> None:
        for split, shards in self._by_split.items():
            sizes = {self.path(shard).rpartition("/")[2]: shard.rows for shard in shards}
            files.write_json(self.job.path(split, _SIZES), sizes)
        self.write_entities(_ENTITIES)
        split, shards = next(iter(self._by_split.items()))
        # Of tars `datasets` reads only those whose images all end alike, and a dataset's do not.
        self.write_card([classes(_ENTITIES)], {}, _USAGE.format(held=self.held(), split=split, last=len(shards) - 1))


def members(batch: pa.RecordBatch) -> list[tuple[str, bytes]]:
    """Names and contents of the files of these rows, in their order."""
    found = []
    others = batch.drop_columns(["image", "alt_text"]).to_pylist()
    images, texts = batch.column("image").field("bytes"), batch.column("alt_text").to_pylist()
    for row, stored, text in zip(others, images.to_pylist(), texts, strict=True):
        key = row["image_id"]
        found.append((image_name(key, stored), stored))
        found.append((f"{key}.json", msgspec.json.encode(row)))
        found.append((f"{key}.txt", text.encode()))
    return found


def _header(name: str, size: int) -> tarfile.TarInfo:
    """Without a time or an owner, so that equal rows make equal tars."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o444
    return header
