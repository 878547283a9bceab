"""Encoders by name: open_clip models, trained or not, Hugging Face models, folders of stored vectors.

Reads    what evaluate.models names, by the grammar of core/model_name.py
Writes   vectors_ND: float32, norm 1

Legend: N images or texts, H W pixels, L tokens, D the model's width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from i2e_pipeline.core import files
from i2e_pipeline.core.config import EvaluateConfig, ModelConfig, digest
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.logs import muted
from i2e_pipeline.core.machine import DeviceError, choose_device
from i2e_pipeline.core.model_name import RANDOM, ModelName, ModelNameError, parse, split_label
from i2e_pipeline.dataset import training_data
from i2e_pipeline.dataset.training_data import TrainingData
from i2e_pipeline.images import encoder as root_encoder
from i2e_pipeline.images import models

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MOFI_SIDE = 224
_TELLS_APART = ("a photo of a dog", "a photo of a cat")
"""Two texts that no tokenizer of a trained model takes for the same."""


class EncoderError(I2EError, ValueError):
    """An encoder that cannot be used; the message names it, what is wrong and the way out."""


@dataclass(frozen=True)
class ImageEncoder:
    """An encoder of images, perhaps of texts, as the protocols see it."""

    label: str
    """As the tables call it."""
    spec: str
    fingerprint: str
    """32 hex characters: weights, preprocessing, dtype."""
    width: int
    prepare: Callable[[Image.Image], np.ndarray]
    """One RGB image -> the model's pixels; thread-safe."""
    images: Callable[[np.ndarray], np.ndarray]
    """Prepared images, stacked -> vectors_ND."""
    texts: Callable[[list[str]], np.ndarray] | None
    """Texts -> vectors_ND; None: the model has no text tower."""
    preprocessing: str = "model"
    stored: Path | None = None
    """Folder of stored vectors, which then stand for the model."""
    trained_on: TrainingData = field(default_factory=TrainingData)


class _Evaluated(ModelConfig):
    section: ClassVar[str] = "evaluate"


def open_encoder(spec: str, config: EvaluateConfig) -> ImageEncoder:
    """The encoder that `[LABEL=]MODEL` names, checked. Raises EncoderError.

    Hugging Face models are never fetched: a folder, or a name whose files are in the local cache.
    """
    try:
        label, model = split_label(spec)
        name = parse(model)
    except ModelNameError as error:
        raise EncoderError(f"evaluate.models: {error}") from None
    if name.kind == "vectors":
        return _stored(label, name.model)
    has_text = True
    try:
        if name.kind == "hf":
            made, named, has_text = _hugging_face(name.model, config)
        elif name.weights == RANDOM:
            made, named = _untrained(name, config)
        else:
            made, named = _open_clip(name, config)
    except (EncoderError, DeviceError):
        raise
    except root_encoder.ModelError as error:
        raise EncoderError(str(error)) from error
    except (RuntimeError, AssertionError, OSError, KeyError, ValueError) as error:
        remedy = (
            f". evaluate.preprocessing=mofi-gpr1200 gives {MOFI_SIDE} px: does this model take them? "
            "evaluate.preprocessing=model gives what it takes"
            if config.preprocessing == "mofi-gpr1200"
            else ""
        )
        raise EncoderError(f"{model} cannot be used: {type(error).__name__}: {error}{remedy}") from error
    return ImageEncoder(
        label=label,
        spec=model,
        fingerprint=digest([named, config.preprocessing]),
        width=made.width,
        prepare=made.prepare,
        images=made.images,
        texts=made.texts if has_text and made.has_text else None,
        preprocessing=config.preprocessing,
        trained_on=training_data.read(name.folder) if name.folder and name.weights != RANDOM else TrainingData(),
    )


def mofi_gpr1200(image: Image.Image) -> torch.Tensor:
    """float32 (3, 224, 224): the preprocessing behind MOFI's released GPR1200 figures (apple/ml-mofi).

    Scaling works on the tensor and without antialiasing, so details alias; the figures depend on it.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    x_3HW = F.to_tensor(image)
    x_3HW = F.resize(x_3HW, [MOFI_SIDE], InterpolationMode.BILINEAR, antialias=False)
    return F.normalize(F.center_crop(x_3HW, [MOFI_SIDE]), CLIP_MEAN, CLIP_STD)


def _preprocess(config: EvaluateConfig) -> Callable[[Image.Image], torch.Tensor] | None:
    return mofi_gpr1200 if config.preprocessing == "mofi-gpr1200" else None


def _settings(model: str, pretrained: str | None, config: EvaluateConfig) -> ModelConfig:
    return _Evaluated(
        model=model, pretrained=pretrained, device=config.device, dtype=config.dtype, batch_size=config.batch_size
    )


def _open_clip(name: ModelName, config: EvaluateConfig) -> tuple[root_encoder.Encoder, Any]:
    if name.kind == "name" and name.weights is None:
        raise EncoderError(
            f"evaluate.models: {name.model} names no weights: {name.model}@WEIGHTS (an open_clip tag or a weights "
            f"file), {name.model}@random for an untrained control, local-dir:FOLDER, hf-hub:ORG/NAME, hf:FOLDER or "
            "vectors:FOLDER"
        )
    settings = _settings(name.model, name.weights if name.kind == "name" else None, config)
    named = root_encoder.fingerprint(settings)  # first: of a folder that is missing it says more than open_clip does
    return root_encoder.load(settings, preprocess=_preprocess(config), images_alone=True), named


def _untrained(name: ModelName, config: EvaluateConfig) -> tuple[root_encoder.Encoder, Any]:
    """The architecture with weights drawn from evaluate.seed: what the data alone gives away."""
    model_name = name.model
    models.check(model_name, None, "evaluate")
    settings = _settings(model_name, None, config)
    named = {"untrained": root_encoder.fingerprint(settings), "seed": config.seed}
    precision = "bf16" if config.dtype == "bfloat16" else "fp32"
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that one also seeds the cards, which fork_rng would have to wake to restore.
        torch.default_generator.manual_seed(config.seed)
        with muted(logging.WARNING):  # open_clip warns that there are no weights, which is what was asked for
            model = models.create(
                model_name, None, "evaluate", precision=precision, load_weights=False, pretrained_text=False
            )
    made = root_encoder.Encoder(
        model,
        _preprocess(config) or models.preprocessing(model),
        models.tokenizer(model_name),
        name=f"{model_name}@random",
        device=choose_device(config.device, "evaluate.device"),
        dtype=_dtype(config),
        batch_size=config.batch_size,
        fingerprint=digest(named),
    )
    return made, named


def _dtype(config: EvaluateConfig) -> torch.dtype:
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def _stored(label: str, place: str) -> ImageEncoder:
    folder, model = Path(place), f"vectors:{place}"
    if not folder.is_dir():
        raise EncoderError(f"{model}: {folder} is no folder; it holds a file DATASET.npz for each data set")

    def none(_: Any) -> np.ndarray:
        raise EncoderError(f"{model} holds vectors and has no model to make more")

    named = files.fingerprint(str(folder))
    return ImageEncoder(label, model, named, 0, none, none, None, "stored", folder)


class _HuggingFace(nn.Module):
    """A transformers model with the methods that encoder.Encoder calls on an open_clip model.

    Two towers (CLIP, SigLIP): projected features. An image model alone (DINOv2, ViT): its pooled output, else its first
    token; the Encoder still asks for texts once, to compare widths, and gets a constant.
    """

    def __init__(self, model: Any, padding: int | None = None) -> None:
        super().__init__()
        self.whole = model
        self.visual = getattr(model, "vision_model", model)
        self.dual = hasattr(model, "get_image_features")
        self.has_text = self.dual and hasattr(model, "get_text_features")
        self.padding = padding
        """Token that attention must not see; None where the model was trained without a mask."""
        self.width = 0

    def encode_image(self, x_N3HW: torch.Tensor) -> torch.Tensor:
        if self.dual:
            output = self.whole.get_image_features(pixel_values=x_N3HW)
        else:
            output = self.whole(pixel_values=x_N3HW)
        features_ND = _features(output)
        self.width = features_ND.shape[-1]
        return features_ND

    def encode_text(self, tokens_NL: torch.Tensor) -> torch.Tensor:
        if not self.has_text:
            return torch.ones(len(tokens_NL), self.width, device=tokens_NL.device)
        seen = {} if self.padding is None else {"attention_mask": (tokens_NL != self.padding).long()}
        return _features(self.whole.get_text_features(input_ids=tokens_NL, **seen))


def _features(output: Any) -> torch.Tensor:
    """features_ND of what a model returns: transformers 5 wraps them, earlier releases do not."""
    if isinstance(output, torch.Tensor):
        return output
    pooled = getattr(output, "pooler_output", None)
    features = output.last_hidden_state[:, 0] if pooled is None else pooled
    return features.flatten(1)  # convolutional models pool to (N, D, 1, 1)


def _hugging_face(name: str, config: EvaluateConfig) -> tuple[root_encoder.Encoder, Any, bool]:
    """The model in a folder, or of a name in the local cache, never from the network."""
    try:
        import transformers
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EncoderError(f"hf:{name} needs transformers: pip install 'i2e-pipeline[train]' ({error})") from None

    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except Exception as error:
            raise EncoderError(
                f"hf:{name} is no folder and not in the local cache, and nothing is fetched here: "
                f"`hf download {name}` first, or name a folder ({type(error).__name__})"
            ) from None
    here: dict[str, Any] = {"local_files_only": True}
    model = transformers.AutoModel.from_pretrained(str(folder), **here)
    own: Callable[[Image.Image], torch.Tensor] | None = _preprocess(config)
    if own is None:
        processor = transformers.AutoImageProcessor.from_pretrained(str(folder), **here)

        def own(image: Image.Image) -> torch.Tensor:
            pixels: torch.Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
            return pixels

    adapted = _HuggingFace(model)
    tokenize: Callable[[list[str]], torch.Tensor] = _no_tokens
    if adapted.has_text:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **here)
        longest = int(getattr(model.config, "text_config", model.config).max_position_embeddings)
        longest = min(longest, int(tokenizer.model_max_length))
        # A mask only where padding is a token of its own: CLIP pads with the end token, whose place is what is pooled.
        if "attention_mask" in tokenizer.model_input_names and tokenizer.pad_token_id != tokenizer.eos_token_id:
            adapted.padding = tokenizer.pad_token_id

        def tokenize(texts: list[str]) -> torch.Tensor:
            tokens: torch.Tensor = tokenizer(
                texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
            )["input_ids"]
            return tokens

        _check_tokenizer(name, tokenize(list(_TELLS_APART)), getattr(model.config, "text_config", model.config))

    named = {"files": files.fingerprint(str(folder)), "dtype": config.dtype}
    made = root_encoder.Encoder(
        adapted.to(_dtype(config)),
        own,
        tokenize,
        name=f"hf:{name}",
        device=choose_device(config.device, "evaluate.device"),
        dtype=_dtype(config),
        batch_size=config.batch_size,
        fingerprint=digest(named),
    )
    return made, named, adapted.has_text


def _check_tokenizer(name: str, tokens_2L: torch.Tensor, config: Any) -> None:
    """Raises EncoderError unless the two texts of _TELLS_APART have tokens of their own, all of the text tower's.

    For a folder without a tokenizer's files transformers makes an empty one, to which all texts are the same.
    """
    remedy = f"copy the model's own tokenizer files into that folder (tokenizer.json, or what `hf download {name}` has)"
    if torch.equal(tokens_2L[0], tokens_2L[1]):
        raise EncoderError(
            f"hf:{name}: its tokenizer does not tell {_TELLS_APART[0]!r} from {_TELLS_APART[1]!r}, so every text would "
            f"have the same vector: {remedy}"
        )
    largest, vocabulary = int(tokens_2L.max()), int(config.vocab_size)
    if largest >= vocabulary:
        raise EncoderError(
            f"hf:{name}: its tokenizer gives token {largest}, and the text tower has {vocabulary}: it belongs to "
            f"another model; {remedy}"
        )


def _no_tokens(texts: list[str]) -> torch.Tensor:
    return torch.zeros(len(texts), 2, dtype=torch.long)
