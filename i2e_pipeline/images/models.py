"""open_clip's models by name: the one place that makes one, for scores, trainings and evaluations alike.

Reads    an architecture and weights by the grammar of core/model_name.py; open_clip's own tables of both

Weights that were trained with QuickGELU are nothing with GELU: vectors come out, and those of no model. open_clip only
warns. So a model is built with the activation of its weights' tag. Weights that are to be fetched are asked for once:
where their host cannot be reached, that is said at once, and not after minutes of retries in each worker.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import requests

from i2e_pipeline.core.errors import I2EError, first_line
from i2e_pipeline.core.model_name import parse

_SHOWN = 12
_PATIENCE = 5.0
"""Seconds for a host's first answer."""


class ModelError(I2EError, ValueError):
    """A model that cannot be used; the message names it, what is wrong and the way out."""


def create(name: str, pretrained: str | None, setting: str, **options: Any) -> Any:
    """An open_clip model, on the CPU unless `options` (those of open_clip.create_model) say otherwise.

    name         an architecture, local-dir:FOLDER or hf-hub:ORG/NAME
    pretrained   a tag of open_clip's for that architecture, or a file of weights; None: random weights, or those of
                 the folder
    setting      what messages call it: "score", "train.encoder"
    Raises ModelError for what open_clip does not know and for weights that cannot be had; open_clip's own errors
    for what it cannot build.
    """
    import open_clip

    check(name, pretrained, setting)
    if wants_quick_gelu(name, pretrained):
        options["force_quick_gelu"] = True
    with _asked_once(name, pretrained, setting):
        return open_clip.create_model(name, pretrained=pretrained, **options)


def tokenizer(name: str) -> Any:
    """The tokenizer of a model. Raises ModelError where it cannot be had; one of a hub that cannot be reached is not
    waited for."""
    import open_clip

    try:
        with _asked_once(name, None, "model"):
            return open_clip.get_tokenizer(name)
    except Exception as error:  # of a hub, of transformers, of a folder that lacks its files
        repository = _config(name).get("text_cfg", {}).get("hf_tokenizer_name")
        where = f" {repository}" if repository else ""
        fetch = (
            f"`hf download {repository} --include 'tokenizer*'`" if repository else "save_pretrained of transformers"
        )
        raise ModelError(
            f"model={name}: its tokenizer{where} cannot be had ({first_line(error)}). Fetch it where it can be "
            f"({fetch}) and bring it here, into ~/.cache/huggingface, or into the folder of a local-dir"
        ) from error


def preprocessing(model: Any) -> Any:
    """RGB image -> float32 (3, H, W), as the model wants it."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)


def wants_quick_gelu(name: str, pretrained: str | None) -> bool:
    """Whether these weights were trained with QuickGELU, and the architecture of this name has GELU."""
    tag = _tag(name, pretrained)
    return bool(tag and tag.get("quick_gelu")) and not _config(name).get("quick_gelu")


def check(name: str, pretrained: str | None, setting: str) -> None:
    """Raise ModelError where open_clip has no such architecture or no such weights for it. Fetches nothing."""
    if parse(name).kind != "name":
        return
    import open_clip  # seconds, which a folder's model does not want

    if not _config(name):
        raise ModelError(
            f"{setting}.model={name}: open_clip knows no such architecture; near to it are "
            f"{_nearest(name, open_clip.list_models())}. `python -c 'import open_clip; "
            f"print(open_clip.list_models())'` "
            "lists them all"
        )
    if pretrained is None or Path(pretrained).is_file():
        return
    tag = _tag(name, pretrained)
    known = open_clip.list_pretrained_tags_by_model(_built_in(name))
    if tag is None:
        plain = name.removesuffix("-quickgelu")
        others = open_clip.list_pretrained_tags_by_model(_built_in(plain)) if plain != name else []
        if pretrained in others:
            raise ModelError(
                f"{setting}.pretrained={pretrained}: these weights were trained with GELU, and {name} has QuickGELU: "
                f"take {setting}.model={plain}@{pretrained}"
            )
        raise ModelError(
            f"{setting}.pretrained={pretrained}: neither a file nor one of {name}'s weights, which are "
            f"{_nearest(pretrained, known) or 'none'}"
        )


def refuse_untrained(name: str, pretrained: str | None, setting: str) -> None:
    """Raise ModelError for an architecture of open_clip's without weights, where trained ones are needed."""
    if pretrained is not None or parse(name).kind != "name":
        return
    import open_clip

    check(name, None, setting)
    known = _nearest("", open_clip.list_pretrained_tags_by_model(_built_in(name)))
    raise ModelError(
        f"{setting}.model={name} names an architecture and no weights: write {name}@TAG; known are "
        f"{known or 'none: write ' + name + '@FILE'}"
    )


def check_at_hand(name: str, pretrained: str | None, setting: str) -> None:
    """Raise ModelError where the weights are neither on this machine nor to be had from where they are kept."""
    check(name, pretrained, setting)
    if not _on_this_machine(name, pretrained) and (why := _unreachable(_host(name, pretrained))):
        raise ModelError(_no_weights(name, pretrained, setting, why))


def width(name: str) -> int | None:
    """How wide the vectors of a model are, as its architecture says; None where only the hub knows."""
    folder = parse(name).folder
    if folder is None:
        return _config(name).get("embed_dim")
    said = json.loads((Path(folder) / "open_clip_config.json").read_text(encoding="utf-8"))
    return said.get("model_cfg", said).get("embed_dim") if isinstance(said, dict) else None


def _nearest(word: str, known: list[str]) -> str:
    """The known ones, those that are spelt most alike first."""
    order = sorted(known, key=lambda one: -difflib.SequenceMatcher(None, word.lower(), one.lower()).ratio())
    return ", ".join(order[:_SHOWN]) + (f" and {len(order) - _SHOWN} more" if len(order) > _SHOWN else "")


def _built_in(name: str) -> str:
    return name.replace("/", "-")


def _config(name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of an architecture; empty for a name that is none."""
    if parse(name).kind != "name":
        return {}
    import open_clip

    return open_clip.get_model_config(_built_in(name)) or {}


def _tag(name: str, pretrained: str | None) -> dict[str, Any] | None:
    """What open_clip knows of a tag; None of a file, of a folder's weights and of what it does not know."""
    if pretrained is None or parse(name).kind != "name" or Path(pretrained).is_file():
        return None
    import open_clip

    return open_clip.get_pretrained_cfg(_built_in(name), pretrained) or None


# What is to be fetched


def _repository(name: str, pretrained: str | None) -> str | None:
    """Of the Hugging Face hub, ORG/NAME; None where nothing comes from there."""
    if parse(name).kind == "hf-hub":
        return name.removeprefix("hf-hub:").partition("@")[0]
    tag = _tag(name, pretrained) or {}
    return os.path.split(tag["hf_hub"])[0] if tag.get("hf_hub") else None


def _host(name: str, pretrained: str | None) -> str | None:
    from huggingface_hub import constants

    if _repository(name, pretrained):
        return str(constants.ENDPOINT)
    return (_tag(name, pretrained) or {}).get("url") or None


def _on_this_machine(name: str, pretrained: str | None) -> bool:
    """Whether nothing is to be fetched, or it was before."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    if repository := _repository(name, pretrained):
        try:
            return any(r.repo_id == repository and r.nb_files for r in scan_cache_dir().repos)
        except CacheNotFound:
            return False
    tag = _tag(name, pretrained) or {}
    if "file" not in tag and (url := tag.get("url")):
        return (Path("~/.cache/clip").expanduser() / os.path.basename(url)).is_file()
    return True


@lru_cache(maxsize=8)
def _unreachable(host: str | None) -> str:
    """Why a host does not answer; empty where it does. It is asked once by a process."""
    from huggingface_hub import constants

    if host is None:
        return ""
    if constants.HF_HUB_OFFLINE and host == constants.ENDPOINT:
        return "HF_HUB_OFFLINE is set"
    try:
        requests.head(host, timeout=_PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        return type(error).__name__
    return ""


@contextmanager
def _asked_once(name: str, pretrained: str | None, setting: str) -> Iterator[None]:
    """Within the block a hub that cannot be reached is not asked again and again: what lies on this machine is used,
    and for what does not ModelError is raised."""
    from huggingface_hub import constants

    if parse(name).kind == "local-dir" and pretrained is None:
        yield  # its tokenizer, too, comes with the package or lies in the folder
        return
    check_at_hand(name, pretrained, setting)
    before = constants.HF_HUB_OFFLINE
    # Only what has a repository there, or a text tower or tokenizer of there, asks the hub at all.
    if _repository(name, pretrained) or any(key.startswith("hf_") for key in _config(name).get("text_cfg", {})):
        constants.HF_HUB_OFFLINE = before or bool(_unreachable(str(constants.ENDPOINT)))
    try:
        yield
    except Exception as error:
        if constants.HF_HUB_OFFLINE and "ffline" in f"{type(error).__name__} {error} {error.__cause__}":
            raise ModelError(
                _no_weights(name, pretrained, setting, _unreachable(str(constants.ENDPOINT)) or str(error))
            ) from error
        raise
    finally:
        constants.HF_HUB_OFFLINE = before


def _no_weights(name: str, pretrained: str | None, setting: str, why: str) -> str:
    from huggingface_hub import constants

    repository, host = _repository(name, pretrained), _host(name, pretrained) or constants.ENDPOINT
    fetch = f"`hf download {repository}`" if repository else f"`curl -LO {host}`"
    into = "~/.cache/clip" if host != constants.ENDPOINT else "~/.cache/huggingface"
    return (
        f"{setting}.model={name}{f'@{pretrained}' if pretrained else ''}: its weights are not whole on this machine, "
        f"and {host} cannot be reached ({why}). Fetch them where it can ({fetch}) and bring them here, "
        f"into {into}; or name what lies here: {setting}.model=local-dir:FOLDER, or NAME@FILE"
    )
