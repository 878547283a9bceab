"""Encoder: an open_clip model as two functions, pixels -> unit vectors and texts -> unit vectors.

Reads    an open_clip model: NAME@WEIGHTS, local-dir:FOLDER or hf-hub:ORG/NAME (core/model_name.py)
Writes   vectors_ND: float32, norm 1

Legend: N images or texts, H W pixels, L tokens, D the model's embedding width.

What makes it fast, per core of a CPU (benchmarks/scoring.py): channels-last pixels, batch norms folded into the
convolutions before them, chunks that stay in cache, texts cut to their true length. Each shortcut is checked on a probe
when the model is loaded and left out where the model does not allow it.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from i2e_pipeline.core.config import ModelConfig, digest
from i2e_pipeline.core.machine import choose_device
from i2e_pipeline.core.model_name import parse
from i2e_pipeline.images import models
from i2e_pipeline.images.models import ModelError

log = logging.getLogger(__name__)

PREPROCESSING = 1
"""Raised whenever decode.py or this file gives other pixels for the same bytes: older scores are then not mixed in."""
CPU_CHUNK = 8
"""Images that go through the model at once on a CPU; 64 at once leave the cache and cost a quarter of the speed."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""How far a vector's components may move by a shortcut, by dtype."""
_PROBES = ("a", "a photo of a dog", "Turkey, large bird of the genus Meleagris, native to North America")


class Encoder:
    """One model on one device. Image preprocessing (`prepare`) is thread-safe; encoding is for one thread at a time."""

    def __init__(
        self,
        model: nn.Module,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenizer: Callable[[list[str]], torch.Tensor] | None,
        *,
        name: str = "model",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        fingerprint: str = "",
    ) -> None:
        """tokenizer   None: only images are encoded
        Raises ModelError where the two towers' vectors differ in width, are not finite or have no length.
        """
        self.name = name
        self.device = torch.device(device)
        self.dtype = dtype
        self.batch_size = batch_size
        self.fingerprint = fingerprint
        # On a CPU the same for every config: vectors may differ in their last bits between batches of different sizes.
        self._rows_at_once = CPU_CHUNK if self.device.type == "cpu" else batch_size
        self._model: Any = model.eval().requires_grad_(False).to(self.device)
        self._tokenizer = tokenizer
        self._padding = 0 if tokenizer is None else int(tokenizer([""])[0, -1])
        self._shorter: dict[int, Any] = {}
        self._on_pil, self._mean_std = _split(preprocess)
        self._preprocess = preprocess
        self._visual: Any = model.visual
        self._visual.to(memory_format=torch.channels_last)
        grey = Image.new("RGB", (256, 256), (127, 127, 127))
        pixels = self.prepare(grey)
        self.side = min(pixels.shape[:2] if pixels.dtype == np.uint8 else pixels.shape[1:])
        """Side of the model's input in pixels."""
        self.trims_text = False
        self.width = 0
        self._check(pixels)

    # -- images -------------------------------------------------------------------------------------------------

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The model's own preprocessing of an RGB image: uint8 (H, W, 3), normalised later for a whole batch.

        Float32 (3, H, W), normalised, where the model's transform does not end in ToTensor and Normalize.
        """
        if self._mean_std is None:
            return np.asarray(self._preprocess(image), dtype=np.float32)
        for step in self._on_pil:
            image = step(image)
        return np.asarray(image)

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """vectors_ND (float32, norm 1) of N prepared images, stacked."""
        return self._in_batches(len(pixels), lambda part: self._encode_images(pixels[part]))

    def _encode_images(self, pixels: np.ndarray) -> torch.Tensor:
        return self._model.encode_image(self._normalised(pixels)).float()

    def _normalised(self, pixels: np.ndarray) -> torch.Tensor:
        raw = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self.device, non_blocking=True)
        if self._mean_std is None:
            return raw.to(self.dtype).contiguous(memory_format=torch.channels_last)
        mean, std = (torch.tensor(v, device=self.device, dtype=torch.float32) for v in self._mean_std)
        x_NHWC = raw.float().mul_(1 / (255 * std)).sub_(mean / std)
        return x_NHWC.to(self.dtype).permute(0, 3, 1, 2)  # channels last is what NHWC already is in memory

    @property
    def scale(self) -> float:
        """What the model multiplies cosines of image and text by: the inverse of its temperature."""
        return float(self._model.logit_scale.float().exp().reshape(()))

    @property
    def has_text(self) -> bool:
        """Whether texts can be encoded, too."""
        return self._tokenizer is not None

    # -- texts --------------------------------------------------------------------------------------------------

    def texts(self, texts: list[str]) -> np.ndarray:
        """vectors_ND (float32, norm 1) of N texts, in their order."""
        if not texts:
            return np.empty((0, self.width), dtype=np.float32)
        if self._tokenizer is None:
            raise ModelError(f"{self.name}: texts cannot be encoded without its tokenizer")
        tokens_NL = self._tokenizer(texts)
        lengths_N = self._lengths(tokens_NL)
        if not self.trims_text:
            lengths_N[:] = tokens_NL.shape[1]
        vectors_ND = np.empty((len(texts), self.width), dtype=np.float32)
        # Only texts of one length share a batch: what a text is padded to must not depend on its neighbours.
        for length in np.unique(lengths_N).tolist():
            some = np.flatnonzero(lengths_N == length)
            part_NL = tokens_NL[torch.from_numpy(some), :length]
            vectors_ND[some] = self._in_batches(len(some), partial(self._encode_part, part_NL))
        return vectors_ND

    def _lengths(self, tokens_NL: torch.Tensor) -> np.ndarray:
        """Tokens up to the last that is not padding, and one more: some tokenizers pad with the end token itself."""
        real_NL = (tokens_NL != self._padding).numpy()
        last_N = tokens_NL.shape[1] - real_NL[:, ::-1].argmax(axis=1)
        return np.minimum(np.where(real_NL.any(axis=1), last_N, 1) + 1, tokens_NL.shape[1])

    def _encode_part(self, tokens_NL: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return self._encode_tokens(tokens_NL[torch.from_numpy(rows)])

    def _encode_tokens(self, tokens_NL: torch.Tensor) -> torch.Tensor:
        return self._for_length(tokens_NL.shape[1]).encode_text(tokens_NL.to(self.device)).float()

    def _for_length(self, length: int) -> Any:
        """The model with its position table and causal mask cut to `length`; weights are shared, not copied."""
        if length not in self._shorter:
            self._shorter[length] = cut_to(self._model, length)
        return self._shorter[length]

    # -- both ---------------------------------------------------------------------------------------------------

    def _in_batches(self, count: int, encode: Callable[[np.ndarray], torch.Tensor]) -> np.ndarray:
        """Encodes `count` rows in batches. Where the device cannot hold one, batches are of half the size from then on.

        Every batch has the same number of rows, the last one filled up with copies of its last row: matrix kernels
        differ by shape in the last bits, and a row's vector must not depend on how many came with it.
        """
        done: list[np.ndarray] = []
        at = 0
        while at < count:
            size = self._rows_at_once
            try:
                with torch.inference_mode():
                    filled = np.minimum(np.arange(at, at + size), count - 1)
                    rows = nn.functional.normalize(encode(filled), dim=-1).cpu().numpy()[: count - at]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self._rows_at_once = max(1, size // 2)
                self.batch_size = min(self.batch_size, self._rows_at_once)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            done.append(rows)
            at += size
        return np.concatenate(done) if done else np.empty((0, self.width), dtype=np.float32)

    def _check(self, pixels: np.ndarray) -> None:
        """Widths and norms of both towers; then tries the shortcuts and keeps those that change nothing."""
        with torch.inference_mode():
            image_D = self._encode_images(pixels[None])[0]
            self._check_norms(image_D.norm()[None])
            self.width = int(image_D.shape[-1])
            if self._tokenizer is not None:
                self._check_texts(self._tokenizer(list(_PROBES)))
        _fold_batch_norms(self._visual, lambda: self._encode_images(pixels[None]), TOLERANCE[self.dtype])

    def _check_texts(self, tokens_NL: torch.Tensor) -> None:
        texts_ND = self._encode_tokens(tokens_NL)
        if texts_ND.shape[-1] != self.width:
            raise ModelError(f"{self.name}: image vectors are {self.width} wide, text vectors {texts_ND.shape[-1]}")
        self._check_norms(texts_ND.norm(dim=-1))
        whole_ND = nn.functional.normalize(texts_ND, dim=-1).cpu().numpy()
        self.trims_text = True
        try:
            trimmed_ND = np.concatenate([self.texts([probe]) for probe in _PROBES])
            self.trims_text = bool(np.abs(trimmed_ND - whole_ND).max() <= TOLERANCE[self.dtype])
        except (RuntimeError, IndexError, ValueError):  # a text tower of fixed length
            self.trims_text = False
        if not self.trims_text:
            self._shorter = {tokens_NL.shape[1]: self._model}

    def _check_norms(self, norms_N: torch.Tensor) -> None:
        if not (torch.isfinite(norms_N).all() and (norms_N > 1e-6).all()):
            raise ModelError(
                f"{self.name}: a vector of a plain grey image or of {_PROBES} has norm {norms_N.tolist()}: "
                "the weights are damaged, or bfloat16 is too narrow for this model (score.dtype=float32)"
            )


def load(
    config: ModelConfig,
    *,
    threads: int | None = None,
    device: str | None = None,
    preprocess: Callable[[Image.Image], torch.Tensor] | None = None,
    images_alone: bool = False,
) -> Encoder:
    """The model that `config` names, checked. Raises ModelError.

    threads     CPU threads a forward pass may use: the task's cores; None: as torch finds them
    device      overrides config.device: "cuda:1" where Spark gave the task that card
    preprocess  in place of the model's own: RGB image -> float32 (3, H, W); the fingerprint does not know of it
    images_alone  a model whose tokenizer cannot be had is loaded without one
    """
    if threads is not None:
        torch.set_num_threads(threads)
    _named(config)
    place = choose_device(device or config.device, f"{config.section}.device")
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    models.refuse_untrained(config.model, config.pretrained, config.section)
    try:
        model = models.create(
            config.model,
            config.pretrained,
            config.section,
            precision="bf16" if dtype is torch.bfloat16 else "fp32",
            require_pretrained=True,
        )
        own, tokenizer = models.preprocessing(model), _tokenizer(config.model, images_alone)
    except ModelError:
        raise
    except Exception as error:  # open_clip raises RuntimeError, FileNotFoundError, KeyError ... for a wrong name
        raise ModelError(
            f"{config.section}.model={config.model} (pretrained={config.pretrained}) does not load: {error}"
        ) from error
    return Encoder(
        model,
        preprocess or own,
        tokenizer,
        name=config.model,
        device=place,
        dtype=dtype,
        batch_size=config.batch_size,
        fingerprint=fingerprint(config),
    )


def _tokenizer(name: str, images_alone: bool) -> Any:
    try:
        return models.tokenizer(name)
    except ModelError as error:
        if not images_alone:
            raise
        log.info("only images are encoded: %s", error)
        return None


def check(config: ModelConfig, at_hand: bool = False) -> None:
    """Raise ModelError where no model has this name, and if `at_hand` is asked for, where its weights cannot be had.

    Loads and fetches nothing, so that a driver can ask before any work.
    """
    _named(config)
    (models.check_at_hand if at_hand else models.check)(config.model, config.pretrained, config.section)
    models.refuse_untrained(config.model, config.pretrained, config.section)


def _named(config: ModelConfig) -> None:
    if not config.model:
        raise ModelError(
            f"{config.section}.model is empty: name a model, for example {config.section}.model=local-dir:FOLDER"
        )


_loaded: dict[tuple[Any, ...], Encoder] = {}
_loading = threading.Lock()
loads = 0
"""Models loaded by this process; equals one per worker, however many tasks it runs."""


def load_once(config: ModelConfig, *, threads: int | None = None, device: str | None = None) -> Encoder:
    """`load`, kept for the life of the worker process. Another model or device takes the old one's place."""
    global loads
    key = (os.getpid(), fingerprint(config), config.batch_size, device or config.device)
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = load(config, threads=threads, device=device)
            loads += 1
        elif threads is not None:
            torch.set_num_threads(threads)
        return _loaded[key]


def fingerprint(config: ModelConfig) -> str:
    """32 hex characters that change with weights, architecture, preprocessing or dtype, and not with device or batch.

    A local folder is named by the content of its files; a published model by name and tag. The
    name of a hub's branch may come to mean other weights: where that matters, pin a revision, or copy the model to a
    folder. Nothing is loaded, so that the driver can call it. Raises ModelError where a local folder is missing.
    """
    named: dict[str, Any] = {"dtype": config.dtype, "preprocessing": PREPROCESSING}
    place = parse(config.model).folder if config.model else None
    if place is not None:
        folder = Path(place)
        if not (folder / "open_clip_config.json").is_file():
            raise ModelError(f"{config.section}.model={config.model}: {folder}/open_clip_config.json does not exist")
        files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".md")
        named["files"] = {
            str(f.relative_to(folder)): _file_digest(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files
        }
    else:
        named |= {"model": config.model, "pretrained": config.pretrained}
        if config.model and models.wants_quick_gelu(config.model, config.pretrained):
            named["activation"] = "quick_gelu"  # what was made with GELU before this was known is another model's
        if config.pretrained and Path(config.pretrained).is_file():
            weights = Path(config.pretrained)
            named["weights"] = _file_digest(str(weights), weights.stat().st_size, weights.stat().st_mtime_ns)
    return digest(named)


@lru_cache(maxsize=256)
def _file_digest(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _split(preprocess: Any) -> tuple[list[Callable[[Any], Any]], tuple[list[float], list[float]] | None]:
    """Of a transform that ends in ToTensor and Normalize, the steps before these and (mean, std); else ([], None)."""
    steps = list(getattr(preprocess, "transforms", []))
    names = [type(step).__name__ for step in steps]
    if len(steps) >= 2 and names[-2] in ("MaybeToTensor", "ToTensor") and names[-1] == "Normalize":
        return steps[:-2], (list(map(float, steps[-1].mean)), list(map(float, steps[-1].std)))
    return [], None


def steps_on_images(preprocess: Any) -> list[Callable[[Any], Any]]:
    """The steps of an open_clip model's transform that come before ToTensor and Normalize: PIL to PIL."""
    return _split(preprocess)[0]


def cut_to(model: nn.Module, length: int) -> nn.Module:
    """The model, cut for texts of `length` tokens: open_clip adds its whole position table to any text.

    Weights are shared, and gradients reach them: the first rows of the table stand in its place.
    """
    view = copy.copy(model)
    view._parameters, view._buffers = dict(model._parameters), dict(model._buffers)
    view._modules = dict(model._modules)
    if isinstance(getattr(model, "text", None), nn.Module):
        view._modules["text"] = cut_to(model.text, length)  # type: ignore[arg-type]
    positions, mask = getattr(model, "positional_embedding", None), getattr(model, "attn_mask", None)
    if isinstance(positions, nn.Parameter) and positions.ndim == 2 and len(positions) >= length:
        view._parameters["positional_embedding"] = positions[:length]  # type: ignore[assignment]
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        view._buffers["attn_mask"] = mask[:length, :length]
    return view


def _fold_batch_norms(tower: nn.Module, encode: Callable[[], torch.Tensor], tolerance: float) -> None:
    """Multiplies each batch norm into the convolution before it. Where that changes the result, all is undone.

    A forward pass shows which convolution stands before which norm, so this works with any architecture.
    """
    produced: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            produced[id(output)] = (module, output)  # the output is kept, so that its id is not given away again
        elif isinstance(module, nn.BatchNorm2d) and inputs and id(inputs[0]) in produced:
            pairs.append((produced[id(inputs[0])][0], module))

    hooks = [m.register_forward_hook(see) for m in tower.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    with torch.inference_mode():
        before = nn.functional.normalize(encode(), dim=-1)
    for hook in hooks:
        hook.remove()
    produced.clear()
    counts = {id(m): sum(m is c or m is b for c, b in pairs) for pair in pairs for m in pair}
    pairs = [
        (conv, norm)
        for conv, norm in pairs
        if counts[id(conv)] == counts[id(norm)] == 1 and norm.running_var is not None and norm.running_mean is not None
    ]
    if not pairs:
        return
    undo: list[Callable[[], None]] = []
    places = {id(child): (parent, name) for parent in tower.modules() for name, child in parent.named_children()}
    for conv, norm in pairs:
        parent, name = places[id(norm)]
        undo.append(_fold(conv, norm, parent, name))
    with torch.inference_mode():
        after = nn.functional.normalize(encode(), dim=-1)
    if not (after - before).abs().max() <= tolerance:
        for step in undo:
            step()


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, parent: nn.Module, name: str) -> Callable[[], None]:
    weight, bias = conv.weight, conv.bias
    gain = (norm.running_var.float() + norm.eps).rsqrt()  # type: ignore[union-attr]
    shift = -norm.running_mean.float() * gain  # type: ignore[union-attr]
    if norm.affine:
        shift, gain = shift * norm.weight.float() + norm.bias.float(), gain * norm.weight.float()
    folded = (weight.float() * gain[:, None, None, None]).to(weight.dtype)
    conv.weight = nn.Parameter(folded.contiguous(memory_format=torch.channels_last), requires_grad=False)
    start = torch.zeros_like(gain) if bias is None else bias.float()
    conv.bias = nn.Parameter((start * gain + shift).to(weight.dtype), requires_grad=False)
    rest = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(m, nn.Module)]
    setattr(parent, name, nn.Sequential(*rest))  # timm's BatchNormAct2d carries the activation

    def undo() -> None:
        conv.weight, conv.bias = weight, bias
        setattr(parent, name, norm)

    return undo
