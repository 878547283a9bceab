"""Export: trained towers as folders that open_clip and transformers load in one line each.

Reads    Towers and their weights (or the running mean of these)
Writes   <folder>/open_clip     open_clip_config.json · open_clip_model.safetensors
         <folder>/huggingface   config.json · model.safetensors · preprocessor_config.json · the tokenizer's files,
                                where transformers' CLIPModel can hold the towers
         <folder>/README.md     how to load them, what they were trained on, their figures (card.py)

The Hugging Face folder is written as files, without transformers: what those files hold is stable, the library's
classes are not. That both libraries give the vectors of the towers is tested (tests/train/test_export.py).

Legend: D width of the vectors, E width of a tower.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from i2e_pipeline.core import files
from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.dataset import training_data
from i2e_pipeline.train import away, checkpoint, journal
from i2e_pipeline.train.card import DECONTAMINATED, Card, of_training
from i2e_pipeline.train.card import text as card_text
from i2e_pipeline.train.encoders import Towers, build
from i2e_pipeline.train.recipes import recipe
from i2e_pipeline.train.strategy import load_towers

log = logging.getLogger(__name__)

_OPEN_CLIP = "open_clip"


class ExportError(I2EError, ValueError):
    """A place that an export cannot take; the message names it and the way out."""


_RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""PIL's numbers, which Hugging Face's configs hold."""


def export(
    towers: Towers,
    weights: Mapping[str, Tensor] | None,
    folder: str | Path,
    *,
    card: Card,
) -> None:
    """Writes a new folder and, once it is whole, puts it in the place of an older one. Where there is no Hugging Face
    folder, the log says why.

    weights   by the names of `towers.state_dict()`, on the CPU; None: those that the towers have. Under FSDP the towers
              have shards only, so they must be given
    card      what the README says
    """
    folder = Path(folder)
    state = _of_model(towers.state_dict() if weights is None else weights)
    with files.fresh_folder(folder) as fresh:
        _write_open_clip(towers, state, fresh / _OPEN_CLIP)
        reason = unfit_for_huggingface(towers)
        if reason is None:
            _write_huggingface(towers, state, fresh / "huggingface")
        else:
            log.info(f"no Hugging Face export: {reason}")
        training_data.write(str(fresh / _OPEN_CLIP), card.data.get(DECONTAMINATED), card.config.data.own_split)
        (fresh / "README.md").write_text(card_text(card, towers, reason), encoding="utf-8")


def export_checkpoint(folder: str | Path, which: str = "latest", to: str | Path | None = None) -> Path:
    """The export of a checkpoint of the training in `folder`, and where it lies; an older one there is replaced.

    folder  local or in a store; of the latter the export is brought there, and what is returned is this machine's copy
    which   checkpoint.find
    to      None: <folder>/exports/step-00001234
    Raises CheckpointError where there is none or it is damaged, EncoderError where its towers cannot be built,
    ExportError where `to` holds something else.
    """
    if to is not None:
        _refuse_others(Path(to))
    place = checkpoint.find(folder, which)
    saved = checkpoint.load(place)
    here = saved.folder.parent if isinstance(place, str) else Path(folder)
    if isinstance(place, str):
        away.Mirror(str(folder), here).fetch(journal.FILE)  # which the card quotes
    target = Path(to) if to is not None else here / "exports" / saved.folder.name
    config = settings_of(saved)
    weights = saved.weights
    teacher = weights.get("to_teacher.weight")
    towers = build(
        config.encoder,
        config.loss,
        config.seed,
        teacher_width=None if teacher is None else len(teacher),
        uses_text=False,  # nothing is trained, and a tokenizer that cannot be had is missed by none
    )
    load_towers(towers, weights, str(place))
    export(towers, None, target, card=of_training(here, config, saved.state.step, text_trained(saved)))
    if isinstance(place, str) and to is None:
        made = [path.relative_to(here).as_posix() for path in sorted(target.rglob("*")) if path.is_file()]
        away.bring(str(here), str(folder), made)
    return target


def _refuse_others(folder: Path) -> None:
    """Raise ExportError for a place that holds anything but an older export, which alone is replaced."""
    if folder.is_dir():
        if any(folder.iterdir()) and not (folder / _OPEN_CLIP / "open_clip_config.json").is_file():
            raise ExportError(f"--to {folder} is there and no export wrote it: remove it, or name another folder")
    elif os.path.lexists(folder):
        raise ExportError(f"--to {folder} is a file: name a folder")


def settings_of(saved: checkpoint.Checkpoint) -> TrainConfig:
    """The settings of a checkpoint, with today's defaults for those that it does not know. Raises CheckpointError."""
    try:
        return TrainConfig.model_validate(saved.state.config)
    except ValidationError as error:
        raise checkpoint.CheckpointError(
            f"{saved.folder}: its settings are of another version of i2e_pipeline ({error.errors()[0]['msg']}): train "
            "on with that version, or start anew with --restart"
        ) from None


def text_trained(saved: checkpoint.Checkpoint) -> bool:
    """Whether the checkpoint's text tower has ever been trained."""
    if saved.state.text_trained is not None:
        return saved.state.text_trained
    config = settings_of(saved)
    return recipe(config).uses_text or config.encoder.pretrained is not None


def _of_model(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names; the scale and the bias, vectors of one component in training, as the scalars they are."""
    state = {
        name.removeprefix("model."): value.detach().to("cpu", torch.float32 if value.is_floating_point() else None)
        for name, value in weights.items()
        if name.startswith("model.")
    }
    for name in ("logit_scale", "logit_bias"):
        if name in state:
            state[name] = state[name].reshape(())
    return {name: value.contiguous() for name, value in state.items()}


def _write_open_clip(towers: Towers, state: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True)
    architecture = dict(towers.architecture)
    if "logit_bias" in state:
        architecture["init_logit_bias"] = float(state["logit_bias"])
    _write_json(folder / "open_clip_config.json", {"model_cfg": architecture, "preprocess_cfg": towers.preprocessing})
    _write_weights(folder / "open_clip_model.safetensors", state)
    if missing := towers.lacks_tokenizer():  # of a training without texts
        log.info(f"no tokenizer in {folder.name}: {missing}")
        return
    wrapped = getattr(towers.tokenizer, "tokenizer", None)
    if wrapped is not None and hasattr(wrapped, "save_pretrained"):
        wrapped.save_pretrained(folder)  # where open_clip looks for a tokenizer that is not its own


# -- Hugging Face -----------------------------------------------------------------------------------------------


def unfit_for_huggingface(towers: Towers) -> str | None:
    """Why transformers' CLIPModel cannot hold these towers, or None."""
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transformer import TextTransformer, VisionTransformer

    model = towers.model
    visual, text = model.visual, getattr(model, "text", model)
    if not isinstance(visual, VisionTransformer):
        return f"CLIPModel's image tower is a plain ViT, this one is a {type(visual).__name__}"
    if text is not model and not isinstance(text, TextTransformer):
        return f"CLIPModel's text tower is a plain transformer, this one is a {type(text).__name__}"
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        return "CLIPModel reads an image at its class token, this tower pools otherwise"
    if not isinstance(visual.ln_pre, nn.LayerNorm) or visual.proj is None:
        return "CLIPModel has a norm before its image blocks and a projection after them, this tower lacks one"
    if not towers.trims_text:
        return "CLIPModel's text tower is causal and read at the end token, this one is not"
    if not isinstance(text.text_projection, Tensor):
        return "CLIPModel projects texts by a matrix, this tower does not"
    for name, tower in (("image", visual), ("text", text)):
        block = tower.transformer.resblocks[0]
        if not hasattr(block, "mlp") or not isinstance(getattr(block, "attn", None), nn.MultiheadAttention):
            return f"the {name} tower's blocks are not CLIP's"
        if not isinstance(block.ls_1, nn.Identity):
            return f"the {name} tower scales its layers (ls_init_value), CLIPModel has no such weights"
        if _activation(block) is None:
            return f"the {name} tower's activation {block.mlp.gelu} has no name in transformers"
    if towers.preprocessing.get("resize_mode", "shortest") == "longest":
        return "CLIPModel's image processor has no resize_mode=longest"
    if missing := towers.lacks_tokenizer():
        return missing
    if not isinstance(towers.tokenizer, SimpleTokenizer) or towers.architecture["text_cfg"].get("tokenizer_kwargs"):
        return "the texts are not split by CLIP's own tokenizer"
    return None


def _write_huggingface(towers: Towers, state: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True)
    tokenizer: Any = towers.tokenizer
    _write_json(folder / "config.json", _huggingface_config(towers, tokenizer, float(state["logit_scale"])))
    _write_weights(folder / "model.safetensors", _huggingface_weights(towers, state))
    _write_json(folder / "preprocessor_config.json", _image_processor(towers))
    _write_tokenizer(tokenizer, folder)


def _huggingface_config(towers: Towers, tokenizer: Any, log_scale: float) -> dict[str, Any]:
    # eos_token_id is the real one: 2, as in OpenAI's folders, makes transformers read a text at its highest token.
    model = towers.model
    visual, text = model.visual, getattr(model, "text", model)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "torch_dtype": "float32",
        "projection_dim": towers.width,
        "logit_scale_init_value": log_scale,
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": towers.image_size,
            "patch_size": visual.conv1.kernel_size[0],
            "num_channels": 3,
            "projection_dim": towers.width,
            **_tower_config(visual),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "projection_dim": towers.width,
            "bos_token_id": tokenizer.sot_token_id,
            "eos_token_id": tokenizer.eot_token_id,
            "pad_token_id": tokenizer.eot_token_id,
            **_tower_config(text),
        },
    }


def _tower_config(tower: Any) -> dict[str, Any]:
    block = tower.transformer.resblocks[0]
    return {
        "hidden_size": block.attn.embed_dim,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(tower.transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": _activation(block),
        "layer_norm_eps": block.ln_1.eps,
    }


def _activation(block: Any) -> str | None:
    """The name that transformers has for a block's activation."""
    from open_clip.transformer import QuickGELU

    gelu = block.mlp.gelu
    if isinstance(gelu, QuickGELU):
        return "quick_gelu"
    if isinstance(gelu, nn.GELU):
        return "gelu" if gelu.approximate == "none" else "gelu_pytorch_tanh"
    return None


def _huggingface_weights(towers: Towers, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by transformers' names. `pre_layrnorm` is spelt so there."""
    prefix = "text." if hasattr(towers.model, "text") else ""
    named = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state[f"{prefix}text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state[f"{prefix}token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state[f"{prefix}positional_embedding"],
    }
    norms = (
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", f"{prefix}ln_final"),
    )
    for theirs, ours in norms:
        for kind in ("weight", "bias"):
            named[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
    for theirs, ours in (("vision_model", "visual"), ("text_model", prefix.rstrip("."))):
        at = f"{ours}.transformer.resblocks." if ours else "transformer.resblocks."
        for name, value in state.items():
            if name.startswith(at):
                layer, _, part = name.removeprefix(at).partition(".")
                for other, piece in _block_weights(part, value):
                    named[f"{theirs}.encoder.layers.{layer}.{other}"] = piece
    return {name: value.contiguous() for name, value in named.items()}


def _block_weights(part: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """One weight of a block by its names there: queries, keys and values lie in one matrix (3E, E) here."""
    kind = part.rpartition(".")[2]
    if part in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = part.removeprefix("attn.in_proj_")
        return [(f"self_attn.{x}_proj.{kind}", piece) for x, piece in zip("qkv", value.chunk(3), strict=True)]
    names = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    return [(f"{names[part.rpartition('.')[0]]}.{kind}", value)]


def _image_processor(towers: Towers) -> dict[str, Any]:
    side, how = towers.image_size, towers.preprocessing
    squash = how.get("resize_mode") == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if squash else {"shortest_edge": side},
        "resample": _RESAMPLE.get(how.get("interpolation", "bicubic"), 3),
        "do_center_crop": not squash,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how["mean"]),
        "image_std": list(how["std"]),
    }


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    start, end = "<|startoftext|>", "<|endoftext|>"
    named_otherwise = {"<start_of_text>": start, "<end_of_text>": end}
    vocabulary = {named_otherwise.get(token, token): number for token, number in tokenizer.encoder.items()}
    _write_json(folder / "vocab.json", vocabulary)
    merges = "".join(f"{a} {b}\n" for a, b in sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__))
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length, **special},
    )


# -- both -------------------------------------------------------------------------------------------------------


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(path: Path, state: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.clone() for name, value in state.items()}, path, metadata={"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())
