"""Encoders: an open_clip model as the two towers that are trained.

Reads    an open_clip architecture by NAME, or of local-dir:FOLDER; weights where the config names some
Writes   Encoded: unit vectors in float32, the scale and the bias of their cosines

The paper's towers (MOFI, arXiv 2306.07952) are open_clip's ViT-B-16, ViT-L-14 and ViT-H-14: text towers of width ×
layers 512 × 12, 768 × 12 and 1024 × 24.

Legend: B images of this rank, C H W channels and sides, L tokens, D width of the vectors, T width of the teacher's.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from i2e_pipeline.core.config import EncoderConfig, LossConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.logs import muted
from i2e_pipeline.core.model_name import parse
from i2e_pipeline.images import models
from i2e_pipeline.images.encoder import cut_to
from i2e_pipeline.train.batch import Encoded

MAX_LOG_SCALE = math.log(100)
"""As in CLIP (arXiv 2103.00020 §2.5): a larger scale makes training unstable."""
Tower = Literal["image", "text"]
_UNDECAYED = ("positional_embedding", "class_embedding", "cls_emb", "pos_embed", "cls_token", "logit_scale")


class EncoderError(I2EError, ValueError):
    """Towers that cannot be built; the message names the setting, its value and the way out."""


class Towers(nn.Module):
    """An image and a text tower with the scale between them; what DDP or FSDP2 wraps.

    The scale and the bias are vectors of one component, since FSDP2 shards no scalars; `export.py` writes them as
    open_clip expects them.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: dict[str, Any],
        tokenizer: Callable[[], Callable[[list[str]], Tensor]],
        preprocessing: dict[str, Any],
        *,
        teacher_width: int | None = None,
        uses_text: bool = True,
        frozen: Collection[str] = (),
    ) -> None:
        """tokenizer: how to get it, which may take a model hub; asked for where texts are read first"""
        super().__init__()
        self.model: Any = model
        self.architecture = architecture
        """open_clip's `model_cfg`: what an export needs to build the same model."""
        self._open_tokenizer = tokenizer
        self.preprocessing = preprocessing
        """open_clip's `preprocess_cfg`."""
        self.width = int(architecture["embed_dim"])
        self.image_size = _side(preprocessing["size"])
        """Side of the input in pixels."""
        self.uses_text = uses_text
        self.trims_text = _sees_only_what_came_before(model)
        self.convolutional = hasattr(model.visual, "layer1") or hasattr(model.visual, "trunk")
        self.to_teacher = None if teacher_width is None else nn.Linear(self.width, teacher_width, bias=False)
        self._gain_C11: Tensor
        self._shift_C11: Tensor
        std_C = torch.tensor(preprocessing["std"])
        mean_C = torch.tensor(preprocessing["mean"])
        self.register_buffer("_gain_C11", (1 / (255 * std_C)).view(-1, 1, 1), persistent=False)
        self.register_buffer("_shift_C11", (mean_C / std_C).view(-1, 1, 1), persistent=False)
        self._frozen = tuple(frozen)
        for name, parameter in self.named_parameters():
            of_texts = not name.startswith(("model.visual.", "to_teacher."))
            if tower_of(name) in self._frozen or (of_texts and not uses_text):
                parameter.requires_grad_(False)
        if not any(p.requires_grad for name, p in self.named_parameters() if tower_of(name)):
            raise EncoderError(
                f"train.optimizer.{'.freeze, train.optimizer.'.join(self._frozen)}.freeze: no tower is left to train"
                + ("" if uses_text else "; this recipe trains the image tower alone")
            )

    @functools.cached_property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Texts to tokens_BL, int64. Raises ModelError where it lies on a hub that cannot be reached."""
        return self._open_tokenizer()

    def lacks_tokenizer(self) -> str | None:
        """Why there is none; None where there is one."""
        try:
            self.tokenizer  # noqa: B018
        except models.ModelError as error:
            return str(error)
        return None

    def forward(self, pixels_BCHW: Tensor, tokens_BL: Tensor | None = None) -> Encoded:
        """Pixels are uint8, RGB. Tokens may have been cut by `trim`. Under autocast the vectors are float32 still."""
        image_BD = self.images(pixels_BCHW)
        bias = self.model.logit_bias
        return Encoded(
            image_BD=image_BD,
            text_BD=None if tokens_BL is None else self.texts(tokens_BL),
            scale=self.model.logit_scale.float().exp().sum(),  # of one: FSDP2 warns of views, which squeeze makes
            bias=None if bias is None else bias.float().sum(),
            distilled_BT=None if self.to_teacher is None else normalize(self.to_teacher(image_BD).float(), dim=-1),
        )

    def train(self, mode: bool = True) -> Towers:
        """A frozen tower stays as it is for evaluation: statistics of its batch norms, too, and nothing is dropped."""
        super().train(mode)
        for name, part in self.model.named_children():
            if tower_of(f"model.{name}.") in self._frozen:
                part.eval()
        return self

    def images(self, pixels_BCHW: Tensor) -> Tensor:
        """Unit vectors (B, D)."""
        x_BCHW = pixels_BCHW.float() * self._gain_C11 - self._shift_C11
        if self.convolutional:
            x_BCHW = x_BCHW.contiguous(memory_format=self.memory_format(x_BCHW.device))
        return normalize(self.model.encode_image(x_BCHW).float(), dim=-1)

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """Of a convolutional image tower and its images. Channels last are faster, but on processors torch 2.15
        corrupts its memory in the backward pass of such a MobileCLIP, which is a timm trunk."""
        unsafe = device.type != "cuda" and hasattr(self.model.visual, "trunk")
        return torch.contiguous_format if unsafe else torch.channels_last

    def texts(self, tokens_BL: Tensor) -> Tensor:
        """Unit vectors (B, D)."""
        length = tokens_BL.shape[1]
        model = cut_to(self.model, length) if self.trims_text else self.model
        return normalize(model.encode_text(tokens_BL).float(), dim=-1)  # type: ignore[operator]

    def trim(self, tokens_BL: Tensor) -> Tensor:
        """Tokens up to the last that any text of the batch is read at; for tokens that are still on the CPU.

        A causal tower's vector is taken at its end token and has seen nothing after it, so the vectors stay the same.
        Elsewhere than on a CPU lengths are multiples of 8: few shapes to compile, and what tensor cores like.
        """
        if not self.trims_text:
            return tokens_BL
        text = getattr(self.model, "text", self.model)
        if _pooling(text) == "eos":
            eos = int(getattr(text, "text_eos_id", getattr(text, "eos_id", -1)))
            end_B = torch.eq(tokens_BL, eos).int().argmax(dim=-1)
        else:
            end_B = tokens_BL.argmax(dim=-1)
        step = 1 if self.device.type == "cpu" else 8
        length = -(-(int(end_B.max()) + 1) // step) * step
        return tokens_BL[:, :length]

    def clamp(self) -> None:
        """Keeps the scale within [1, 100]; to be called after each step."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, MAX_LOG_SCALE)

    def blocks(self) -> list[nn.Module]:
        """Transformer or residual blocks in both towers: what is sharded, or compiled, one by one."""
        return blocks_of(self.model)

    def decayed(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay is for this parameter: matrices and kernels, not norms, biases, scales, positions."""
        return parameter.ndim > 1 and not name.endswith(_UNDECAYED)

    @property
    def device(self) -> torch.device:
        return self._gain_C11.device


def build(
    config: EncoderConfig,
    loss: LossConfig,
    seed: int,
    *,
    teacher_width: int | None = None,
    uses_text: bool = True,
    frozen: Collection[str] = (),
) -> Towers:
    """The towers that `config` names, on the CPU. Raises EncoderError.

    seed            of random weights; the same ones on every rank and in every run, and no other draw is disturbed
    teacher_width   width of the stored vectors that are distilled; None: nothing is
    uses_text       False: the text tower and the scale stay as they are, without gradient
    frozen          "image" or "text": that tower stays as it is
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that one also seeds the cards, which fork_rng would have to wake to restore.
        torch.default_generator.manual_seed(seed)
        model, architecture = _model(config)
        if config.pretrained is None:
            model.logit_scale = nn.Parameter(torch.full((1,), math.log(loss.initial_scale)))
        else:
            model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
        if loss.contrastive == "siglip":
            begin = torch.full((1,), loss.initial_bias)
            kept = config.pretrained is not None and model.logit_bias is not None
            model.logit_bias = nn.Parameter(model.logit_bias.detach().reshape(1) if kept else begin)
        else:
            model.logit_bias = None
        architecture.pop("init_logit_bias", None)
        architecture.pop("nonscalar_logit_scale", None)
        import open_clip

        towers = Towers(
            model,
            architecture,
            functools.partial(models.tokenizer, config.model),
            open_clip.get_model_preprocess_cfg(model),
            teacher_width=teacher_width,
            uses_text=uses_text,
            frozen=frozen,
        )
        if uses_text and (missing := towers.lacks_tokenizer()):  # said before anything is done
            raise EncoderError(f"{missing}. A training without texts (train.recipe=supervised) wants none")
    if config.checkpoint_activations:
        _checkpoint_activations(towers, config)
    if config.compile:
        for block in towers.blocks() or [model.visual]:
            block.compile()
    return towers


def _model(config: EncoderConfig) -> tuple[Any, dict[str, Any]]:
    """The open_clip model and its `model_cfg`, image size included."""
    import open_clip

    architecture = _architecture(config.model)
    if "multimodal_cfg" in architecture:
        raise EncoderError(f"train.encoder.model={config.model}: CoCa also generates text, which is not trained here")
    vision = architecture["vision_cfg"]
    if config.image_size is not None:
        vision["image_size"] = config.image_size
    side, patch = _side(vision.get("image_size", 224)), vision.get("patch_size") or 32
    if side < patch and not vision.get("timm_model_name"):
        raise EncoderError(f"train.encoder.image_size={side}: {config.model} wants {patch} pixels or more, one patch")
    in_folder = parse(config.model).folder is not None
    _check_pretrained(config)
    if _quick_gelu(config, architecture):
        architecture["quick_gelu"] = True
    with_folder = in_folder and config.pretrained == "folder"
    try:
        # open_clip warns of random weights, which are what a pre-training begins with.
        with muted(logging.WARNING):
            model = models.create(
                config.model,
                None if in_folder else config.pretrained,
                "train.encoder",
                force_image_size=config.image_size,
                load_weights=not in_folder or with_folder,
                require_pretrained=with_folder or (not in_folder and config.pretrained is not None),
                pretrained_text=False,
            )
            if in_folder and config.pretrained not in (None, "folder"):
                open_clip.load_checkpoint(model, config.pretrained)
    except models.ModelError as error:
        raise EncoderError(str(error)) from error
    except Exception as error:  # open_clip raises RuntimeError, FileNotFoundError, KeyError, TypeError … for bad models
        raise EncoderError(
            f"train.encoder.model={config.model} (pretrained={config.pretrained}, image_size={config.image_size}) "
            f"cannot be built: {error}"
        ) from error
    return model, architecture


def _architecture(name: str) -> dict[str, Any]:
    import open_clip

    folder = parse(name).folder
    if folder is not None:
        architecture = _described(name, Path(folder))["model_cfg"]
    elif ":" in name:
        raise EncoderError(
            f"train.encoder.model={name}: copy the model to a folder and name it local-dir:FOLDER, or "
            "local-dir:FOLDER@folder to begin with its weights"
        )
    else:
        _known(name, None)
        architecture = open_clip.get_model_config(name.replace("/", "-"))
    return copy.deepcopy(architecture)


def _described(name: str, folder: Path) -> dict[str, Any]:
    """What a local-dir says of its model; "model_cfg" is there."""
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise EncoderError(f"train.encoder.model={name}: {path} does not exist")
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        said["model_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"train.encoder.model={name}: {path} holds no model_cfg: {error!r}") from error
    return said


def conventions(config: EncoderConfig) -> dict[str, Any]:
    """What weights do not tell of their model: the activation, and how images are normalised. Raises EncoderError."""
    import open_clip

    folder = parse(config.model).folder
    if folder is None:
        said = open_clip.get_pretrained_cfg(config.model, config.pretrained or "")
    else:
        said = _described(config.model, Path(folder)).get("preprocess_cfg", {})
    mean, std = said.get("mean", open_clip.OPENAI_DATASET_MEAN), said.get("std", open_clip.OPENAI_DATASET_STD)
    activation = "QuickGELU" if _quick_gelu(config, _architecture(config.model)) else "GELU"
    return {"the activation": activation, "images' mean": tuple(mean), "images' deviation": tuple(std)}


def _quick_gelu(config: EncoderConfig, architecture: dict[str, Any]) -> bool:
    return bool(architecture.get("quick_gelu")) or models.wants_quick_gelu(config.model, config.pretrained)


def _check_pretrained(config: EncoderConfig) -> None:
    """Refuses weights that are not there."""
    wanted, name = config.pretrained, config.model
    if wanted is None or Path(wanted).is_file():
        return
    if parse(name).folder is not None:
        if wanted != "folder":
            raise EncoderError(
                f"train.encoder.pretrained={wanted}: no such file; `folder` takes the weights of {name}, "
                "null starts from random ones"
            )
        return
    _known(name, wanted)


def _known(name: str, pretrained: str | None) -> None:
    try:
        models.check(name, pretrained, "train.encoder")
    except models.ModelError as error:
        raise EncoderError(str(error)) from None


def tower_of(name: str) -> Tower | None:
    """The tower that a parameter of Towers is of; None: of neither, as the scale, the bias and what distils."""
    if name.startswith("model.visual."):
        return "image"
    return None if name.startswith(("to_teacher.", "model.logit_")) else "text"


def _checkpoint_activations(towers: Towers, config: EncoderConfig) -> None:
    if hasattr(towers.model.visual, "layer1"):
        raise EncoderError(
            f"train.encoder.checkpoint_activations: open_clip's ResNets have none ({config.model}): leave it off, "
            "or raise train.accumulate"
        )
    towers.model.set_grad_checkpointing(True)


def _sees_only_what_came_before(model: nn.Module) -> bool:
    """Whether a text's vector stays the same when the tokens after its end are cut off: causal, read at the end."""
    text = getattr(model, "text", model)
    causal = isinstance(getattr(text, "attn_mask", None), Tensor)
    return causal and getattr(text, "cls_emb", None) is None and _pooling(text) in ("argmax", "eos")


def _pooling(text: nn.Module) -> str | None:
    return getattr(text, "text_pool_type", getattr(text, "pool_type", None))


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The topmost lists of like parts that have parts themselves: resblocks, ResNet's layers, timm's stages."""
    found: list[nn.Module] = []
    for child in module.children():
        parts = list(child.children()) if isinstance(child, (nn.ModuleList, nn.Sequential)) else []
        if parts and len({type(p) for p in parts}) == 1 and all(next(p.children(), None) is not None for p in parts):
            found += parts
        else:
            found += blocks_of(child)
    return found


def _side(size: Any) -> int:
    sides = {int(s) for s in size} if isinstance(size, (tuple, list)) else {int(size)}
    if len(sides) > 1:
        raise EncoderError(f"train.encoder.model: an input of {tuple(size)} pixels; only square ones are trained here")
    return sides.pop()
