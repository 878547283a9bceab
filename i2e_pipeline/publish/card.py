"""The dataset card, README.md: front matter as Hugging Face reads it, then what is in the dataset, how to load it,
where its limits are, and how to be left out (templates/card.md).
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader

from i2e_pipeline.core.config import PublishConfig
from i2e_pipeline.core.schemas import I2E_ENTITIES, IMAGES
from i2e_pipeline.core.terminal import shown

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B",
          "10B<n<100B", "100B<n<1T")  # fmt: skip
_NAMED_FILES = 1_000
"""Files of a Delta table that the front matter names at most."""
_TASKS = ["image-classification", "image-feature-extraction", "zero-shot-image-classification"]
_TAGS = ["i2e", "entities", "wikidata", "image-text", "weakly-supervised"]


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
    files    of tables whose folders hold files that count no more (Delta): those that do, of `images` and `entities`,
             below the dataset's folder; None: all that lie there count
    """
    front = _front(facts, settings, images, files)
    environment = Environment(
        loader=PackageLoader("i2e_pipeline.publish"), autoescape=False, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    kept = [name for name in images.names if name not in IMAGES.names]
    body = environment.get_template("card.md").render(facts=facts, top=top, settings=settings, kept=kept)
    return _with_front(front, body)


_USAGE = re.compile(r"^## Load it$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def exported(
    text: str, configs: Sequence[Mapping[str, Any]], schemas: Mapping[str, pa.Schema] | None, usage: str
) -> str:
    """The card of a copy that has other files than the dataset.

    text      the dataset's card; it may be empty
    configs   `configs` of the front matter: which files the copy has
    schemas   by config, the columns that `datasets` is told of; {}: it finds them by itself; None: as of the dataset
    usage     what stands in place of the section on loading
    """
    found = _FRONT.match(text)
    front = yaml.safe_load(found[1]) if found else {}
    body = text[found.end() :] if found else text
    front |= {"configs": [dict(config) for config in configs]}
    if schemas is not None:
        front |= {"dataset_info": [{"config_name": name, "features": features(of)} for name, of in schemas.items()]}
    if not front.get("dataset_info"):
        front.pop("dataset_info", None)
    section = f"## Load it\n\n{usage.strip()}\n\n"
    body, there = _USAGE.subn(lambda _: section, body, count=1)
    return _with_front(front, body if there else f"{body}\n{section}")


def _with_front(front: Mapping[str, Any], body: str) -> str:
    dumped = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{dumped}---\n\n{body.lstrip()}"


def features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Columns as `dataset_info.features` has them.

    With these, `datasets` shows pictures instead of structs of bytes.
    """
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
    # Without a description of its own, `datasets` takes a dataset for any other of the same columns that it has cached.
    described = f"{settings.title} {facts['dataset']}"
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": which_files(folder, files), "description": described}
        for name, (folder, _) in tables.items()
    ]
    configs[0]["default"] = True
    return {
        "pretty_name": settings.title,
        "license": settings.license,
        "language": list(settings.languages),
        "size_categories": [_SIZES[min(len(_SIZES) - 1, max(0, len(str(facts["images"])) - 3))]],
        "task_categories": _TASKS,
        "tags": _TAGS,
        "configs": configs,
        "dataset_info": [{"config_name": name, "features": features(schema)} for name, (_, schema) in tables.items()],
    }


def which_files(folder: str, files: Mapping[str, Sequence[str]] | None) -> str | list[str]:
    """The files of a table that count, as a pattern or by name; `files` as of `card`."""
    if files is None or len(files[folder]) > _NAMED_FILES:
        return f"{folder}/*/*.parquet"
    return sorted(files[folder])


_SIGNS = re.compile(r"[\\`*_\[\]|~]")


def _cell(text: str | None) -> str:
    """A text from outside in a table of Markdown: no sign in it makes markup, a link, a picture or another column."""
    return _SIGNS.sub(r"\\\g<0>", html.escape(" ".join(shown(text or "").split()), quote=False))
