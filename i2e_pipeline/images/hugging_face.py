"""Models of transformers by name: where they are loaded from, and what names their content.

Reads    local-dir:FOLDER or hf-hub:ORG/NAME[@REVISION]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from i2e_pipeline.core import digests
from i2e_pipeline.core.config import digest
from i2e_pipeline.core.extras import remedy
from i2e_pipeline.core.model_name import parse
from i2e_pipeline.images.models import ModelError

_WEIGHTS = ("*.safetensors",)


def place(model: str) -> tuple[str, str | None]:
    """What transformers loads, and the revision, where one is named."""
    named = parse(model)
    if named.folder is not None:
        return named.folder, None
    where, _, revision = named.model.removeprefix("hf-hub:").partition("@")
    return where, revision or None


def trusted(revision: str | None) -> dict[str, Any]:
    """Options of from_pretrained: what a model's folder or page brings is data, and no code of its own is run."""
    return {"trust_remote_code": False, **({"revision": revision} if revision else {})}


def transformers(setting: str) -> Any:
    """The package. Raises ModelError where it is not installed."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModelError(f"{setting}: {remedy(error) or error}") from None
    return transformers


def check(model: str, setting: str) -> None:
    """Raise ModelError where a folder holds no model. Loads no weights."""
    folder = parse(model).folder
    if folder is None:
        return
    here = Path(folder)
    if not (here / "config.json").is_file():
        raise ModelError(f"{setting}={model}: {here / 'config.json'} does not exist")
    if not any(f for pattern in _WEIGHTS for f in here.glob(pattern)):
        raise ModelError(f"{setting}={model}: there are no weights (*.safetensors) in {here}")


def fingerprint(model: str, setting: str, **named: Any) -> str:
    """32 hex characters that change with weights, tokenizer, template or what is `named`. A folder is named by the
    content of its files, a published model by its name and revision. Raises ModelError where a folder is missing."""
    folder = parse(model).folder
    if folder is None:
        return digest({**named, "model": model})
    found = sorted(f for f in Path(folder).rglob("*") if f.is_file() and f.suffix != ".md") if folder else []
    if not found:
        raise ModelError(f"{setting}={model}: there is no such folder, or nothing in it")
    return digest({**named, "files": {str(f.relative_to(folder)): digests.of_file(str(f)) for f in found}})
