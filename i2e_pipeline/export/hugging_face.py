"""Hugging Face's layout: Parquet files that name their split and number, and a card that says what they are.

data/<split>-00000-of-00012.parquet · entities/train-00000-of-00001.parquet · README.md

The Hub shows such a folder, and `datasets.load_dataset` loads it, from a disk or the Hub, with pictures and splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import pyarrow.parquet as pq

from i2e_pipeline.core import files
from i2e_pipeline.core.schemas import I2E_ENTITIES
from i2e_pipeline.export.form import CARD, Form
from i2e_pipeline.export.shards import Shard

_ENTITIES = "entities/train-00000-of-00001.parquet"
FOLDERS = ("data", "entities")
_USAGE = """\
{held}

```python
from datasets import load_dataset

images = load_dataset("PATH/i2e", split="{split}")  # pictures and labels
entities = load_dataset("PATH/i2e", "entities", split="train")  # the classes: class_index, entity_id, name …
```
"""


class HuggingFace(Form):
    name, shard_mb = "hf", 500

    @staticmethod
    def path(shard: Shard) -> str:
        return f"data/{shard.split}-{shard.number:05d}-of-{shard.of:05d}.parquet"

    @cached_property
    def _paths(self) -> set[str]:
        return {self.path(shard) for shard in self.shards}

    def belongs(self, path: str) -> bool:
        return path in self._paths or path in (CARD, _ENTITIES)

    def is_done(self, shard: Shard, there: Mapping[str, int], whole: bool) -> bool:
        return self.path(shard) in there

    def write(self, shard: Shard) -> None:
        schema = self.rows.schema
        with (
            files.fresh_stream(self.job.path(self.path(shard))) as stream,
            pq.ParquetWriter(
                stream,
                schema,
                compression="zstd",
                # Images repeat nowhere, and the viewer of the Hub asks for a few rows: an index of pages finds them.
                use_dictionary=[field.name for field in schema if field.name != "image"],
                write_page_index=True,
            ) as writer,
        ):
            for batch in self.rows.read(shard):
                writer.write_batch(batch)

    def finish(self) -> None:
        self.write_entities(_ENTITIES)
        splits = list(dict.fromkeys(shard.split for shard in self.shards))
        self.write_card(
            [
                {
                    "config_name": "default",
                    "data_files": [{"split": split, "path": f"data/{split}-*"} for split in splits],
                    "default": True,
                },
                {"config_name": "entities", "data_files": _ENTITIES},
            ],
            {"default": self.rows.schema, "entities": I2E_ENTITIES},
            _USAGE.format(held=self.held(), split=splits[0]),
        )
