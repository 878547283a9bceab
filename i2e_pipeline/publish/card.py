"""The dataset card, README.md: front matter as Hugging Face reads it, then what is in the dataset, how to load it, where
its limits are and who takes what out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml

from i2e_pipeline.core.config import PublishConfig
from i2e_pipeline.core.schemas import I2E_ENTITIES, IMAGES

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"),
          (10_000_000_000, "1B<n<10B"), (100_000_000_000, "10B<n<100B"), (1_000_000_000_000, "100B<n<1T"))  # fmt: skip
_TOLD_OF_FILES = 1_000
"""Files of a Delta table that the card names; of more it says how to read the table, or to export it."""


def card(
    facts: Mapping[str, Any],
    top: Sequence[Mapping[str, Any]],
    settings: PublishConfig,
    images: pa.Schema,
    files: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """The text of README.md.

    facts    the manifest
    top      the entities with the most images: rows of ENTITY_STATISTICS
    images   the columns of i2e/images
    files    of a table whose folder also holds files that count no more (Delta): those that do, for `images` and
             `entities`, below the dataset's folder; None: all that lie there count
    """
    front = yaml.safe_dump(
        _front(facts, settings, images, files),
        sort_keys=False,
        allow_unicode=True,
        width=10**6,
        default_flow_style=None,
    )
    kept = [name for name in images.names if name not in IMAGES.names]
    return "\n".join(["---", front.rstrip(), "---", "", *_body(facts, top, settings, kept)])


def features(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns as `dataset_info.features` has them. With them, `datasets` shows pictures instead of structs of bytes,
    and two datasets never share an entry of its cache."""
    return [_feature(field) for field in schema]


def _feature(field: pa.Field) -> dict[str, Any]:
    kind = field.type
    if pa.types.is_struct(kind) and {f.name for f in kind} == {"bytes", "path"}:
        return {"name": field.name, "dtype": "image"}
    if pa.types.is_list(kind):
        of = kind.value_type
        return {"name": field.name, "list": features(pa.schema(list(of))) if pa.types.is_struct(of) else _dtype(of)}
    return {"name": field.name, "dtype": _dtype(kind)}


def _dtype(kind: pa.DataType) -> str:
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


def _front(
    facts: Mapping[str, Any], settings: PublishConfig, images: pa.Schema, files: Mapping[str, Sequence[str]] | None
) -> dict[str, Any]:
    tables = {"default": ("images", images), "entities": ("entities", I2E_ENTITIES)}
    return {
        "pretty_name": settings.title,
        "license": settings.license,
        "language": list(settings.languages),
        "size_categories": [next((name for limit, name in _SIZES if facts["images"] < limit), "n>1T")],
        "task_categories": ["image-classification", "image-feature-extraction", "zero-shot-image-classification"],
        "tags": ["i2e", "entities", "wikidata", "image-text", "weakly-supervised"],
        "configs": [
            {"config_name": name, "data_files": _data_files(folder, files), **({"default": True} if name == "default" else {})}
            for name, (folder, _) in tables.items()
        ],
        "dataset_info": [{"config_name": name, "features": features(schema)} for name, (_, schema) in tables.items()],
    }  # fmt: skip


def _data_files(folder: str, files: Mapping[str, Sequence[str]] | None) -> str | list[str]:
    if files is None or len(files[folder]) > _TOLD_OF_FILES:
        return f"{folder}/*/*.parquet"
    return sorted(files[folder])


def _body(
    facts: Mapping[str, Any], top: Sequence[Mapping[str, Any]], settings: PublishConfig, kept: Sequence[str]
) -> list[str]:
    return [
        f"# {settings.title}: images labelled with Wikidata entities",
        "",
        f"{facts['images']:,} images, {facts['labels']:,} labels, {facts['entities']:,} entities.",
        "",
        "| table | key | holds |",
        "|---|---|---|",
        "| images | image_id | `image` (stored bytes, unchanged), url, alt_text, width, height, key (the source's own), pair_id, "
        "perceptual_hash, `split`, `labels` (entity_id, class_index, score, clip_score, mention)"
        f"{''.join(f', {name}' for name in kept)} |",
        "| entities | class_index | entity_id (Wikidata's number), name, description, aliases, counts, types (names of its "
        "classes), coarse_type, sitelinks, popularity, is_human, wikipedia_title, split, retired |",
        "| statistics | | per entity (also those that no image got), buckets of images per entity, funnel |",
        "",
        "A label's `score` is the probability that it is right, from what text and image say; `clip_score` is the cosine of image and "
        "entity, `mention` the words of the text that proposed it. `manifest.json` holds the model, thresholds, fingerprints and "
        "software that made this dataset; `croissant.json` describes it for programs.",
        "",
        "`split` is `test` for images that show an entity kept out of training (a tenth, by hash of the entity), `validation` for 5 % "
        "of the others (by hash of the image), else `train`. An image and an entity lie on the same side in every dataset.",
        "",
        "## Load it",
        "",
        *_LOADING[facts["storage"]],
        "",
        "## What was kept",
        "",
        "| stage | rows are | in | out | rejected |",
        "|---|---|---:|---:|---|",
        *(
            f"| {s['stage']} | {s['rows_are']} | {s['rows_in']:,} | {s['rows_out']:,} | "
            + (", ".join(f"{reason} {n:,}" for reason, n in s["rejected"].items()) or "none")
            + " |"
            for s in facts["funnel"]
        ),
        "",
        "## Entities with the most images",
        "",
        "| entity | name | description | images | mean CLIP score |",
        "|---|---|---|---:|---:|",
        *(
            f"| [Q{e['entity_id']}](https://www.wikidata.org/wiki/Q{e['entity_id']}) | {_cell(e['name'])} | "
            f"{_cell(e['description'])} | {e['images']:,} | {e['mean_clip_score_labelled']:.3f} |"
            for e in top
        ),
        "",
        "## Limits",
        "",
        "Labels come from alt-text and a model, not from people: some are wrong, and most images show more than their labels say. "
        "A score says how likely a label is to be right for data like those that the calibration was fitted on. What is named often on the "
        "web has many images, what is not has none: entities, places and people are not evenly covered, and no part of this dataset "
        "says how things are distributed in the world. Do not use it to identify people.",
        "",
        "## Rights, and how to be left out",
        "",
        "Entity names and descriptions are Wikidata's (CC0). Images and alt-text belong to their owners; `url` says where each came "
        "from. " + _MASKED[bool(settings.mask)],
        "",
        "To have an image, an address, a domain or an entity taken out, name it "
        + (f"to {settings.contact}." if settings.contact else "to whoever published this dataset.")
        + " Whoever builds it puts it into `select.exclude`; it is gone from the dataset at the next `i2e run`, and the manifest "
        "counts it.",
        "",
    ]  # fmt: skip


_MASKED = {
    True: "Mail addresses and telephone numbers in the alt-text were masked.",
    False: "The alt-text stands as it was found, with whatever mail addresses and telephone numbers it holds.",
}
_LOADING = {
    "parquet": [
        "```python",
        "from datasets import load_dataset                       # pictures and labels",
        'images = load_dataset("PATH/i2e", split="train")        # every row; filter by the column split',
        'entities = load_dataset("PATH/i2e", "entities", split="train")',
        "",
        "import duckdb",
        "duckdb.sql(\"select labels, alt_text from 'PATH/i2e/images/*/*.parquet' where split = 'train'\")",
        "",
        "import polars",
        'polars.scan_parquet("PATH/i2e/images/*/*.parquet")',
        "```",
        "",
        "A loop in plain torch, and exports to WebDataset and to open_clip's tables: docs/outputs.md of i2e_pipeline.",
    ],
    "delta": [
        "```python",
        "from deltalake import DeltaTable",
        'images = DeltaTable("PATH/i2e/images").to_pyarrow_dataset()',
        "```",
        "",
        "Readers that know no Delta see files that count no more: `i2e export` writes plain Parquet, WebDataset or open_clip's "
        "tables.",
    ],
}  # fmt: skip


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")
