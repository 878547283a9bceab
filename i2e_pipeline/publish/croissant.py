"""croissant.json: the dataset described for programs, in MLCommons' Croissant 1.0 (https://docs.mlcommons.org/croissant).

`mlcroissant` reads images and entities by it. It names files below the dataset's folder, so that it stays true wherever
the folder lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from i2e_pipeline.core.config import PublishConfig
from i2e_pipeline.core.schemas import I2E_ENTITIES
from i2e_pipeline.publish.card import which_files

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_KINDS = {"int32": "sc:Integer", "int64": "sc:Integer", "float": "sc:Float", "double": "sc:Float", "bool": "sc:Boolean"}


def croissant(
    facts: Mapping[str, Any],
    settings: PublishConfig,
    images: pa.Schema,
    files: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The JSON-LD of the dataset.

    facts    the manifest
    images   the columns of i2e/images
    files    as of `card`
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "".join(c if c.isalnum() else "-" for c in settings.title),
        "description": f"{facts['images']:,} images labelled with {facts['entities']:,} Wikidata entities.",
        "license": settings.license,
        "version": f"{facts['format_version']}.0.0+{facts['dataset'][:12]}",
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": f"{table}-files",
                "encodingFormat": "application/x-parquet",
                "includes": which_files(table, files),
            }
            for table in ("images", "entities")
        ],
        "recordSet": [_records("images", "image_id", images), _records("entities", "class_index", I2E_ENTITIES)],
    }


def _records(table: str, key: str, schema: pa.Schema) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": table,
        "key": {"@id": f"{table}/{key}"},
        "field": [_field(table, field) for field in schema],
    }


def _field(table: str, field: pa.Field) -> dict[str, Any]:
    kind, name = field.type, f"{table}/{field.name}"
    if pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        parts = [
            _told(table, f"{name}/{f.name}", field.name, _data_type(f.type), f"[*].{f.name}") for f in kind.value_type
        ]
        return {"@type": "cr:Field", "@id": name, "subField": [part | {"repeated": True} for part in parts]}
    if pa.types.is_struct(kind):
        return _told(table, name, field.name, "sc:ImageObject", "bytes")
    told = _told(table, name, field.name, _data_type(kind))
    return told | {"repeated": True} if pa.types.is_list(kind) else told


def _told(table: str, name: str, column: str, kind: str, path: str | None = None) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": f"{table}-files"}, "extract": {"column": column}}
    if path is not None:
        source["transform"] = {"jsonPath": path}
    return {"@type": "cr:Field", "@id": name, "dataType": kind, "source": source}


def _data_type(kind: pa.DataType) -> str:
    of = kind.value_type if pa.types.is_list(kind) else kind
    return _KINDS.get(str(of), "sc:Text")
