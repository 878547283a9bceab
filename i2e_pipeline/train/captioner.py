"""Captioner: a model of transformers that says in a sentence what an image shows.

Reads    local-dir:FOLDER or hf-hub:ORG/NAME[@REVISION]: any model that AutoModelForImageTextToText loads (BLIP, GIT,
         an encoder-decoder of a ViT and a GPT, a chat model …), with its image processor and tokenizer
Writes   captions of each image, drawn by nucleus sampling (Holtzman et al., arXiv 1904.09751)

An image's captions are one call of the model, seeded by the image's id: they are the same in whatever company, order
or process. Beams would be no more work and say nearly the same thing several times.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from i2e_pipeline.core.errors import first_line
from i2e_pipeline.core.machine import choose_device
from i2e_pipeline.images import hugging_face
from i2e_pipeline.images.models import ModelError

SETTING = "captioner"
_ASKING = 1
"""To be raised when this file asks the same model otherwise."""
_PROMPT = "Describe this image in one sentence."
"""Asked of models that were tuned to instructions; others say a caption unasked."""
_TOP_P = 0.9


@dataclass(frozen=True)
class CaptionerConfig:
    model: str
    captions: int = 5
    """Of each image."""
    max_tokens: int = 40
    """Of a caption."""
    device: str = "auto"
    dtype: str = "float32"


class Captioner:
    """One model on one device. It is for one thread at a time."""

    def __init__(
        self, model: Any, images: Any, tokenizer: Any, processor: Any, config: CaptionerConfig, device: str
    ) -> None:
        """processor   the whole one of a model that is asked by a chat template; None: it captions unasked"""
        self.device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._images, self._tokenizer, self._processor, self._config = images, tokenizer, processor, config
        pad = tokenizer.pad_token_id
        self._pad = tokenizer.eos_token_id if pad is None else pad

    def captions(self, images: Sequence[Image.Image], seeds: Sequence[int]) -> list[list[str]]:
        """As many for each image as the config says, on one line each; none of them is empty where the model says
        anything.

        seeds   of each image, 64 bits
        """
        return [self._of_one(image, seed) for image, seed in zip(images, seeds, strict=True)]

    def _of_one(self, image: Image.Image, seed: int) -> list[str]:
        inputs = {name: value.to(self.device) for name, value in self._tensors(image).items()}
        inputs = {n: t.to(self._model.dtype) if t.is_floating_point() else t for n, t in inputs.items()}
        with self._seeded(seed), torch.inference_mode():
            tokens_NL = self._model.generate(
                **inputs,
                do_sample=True,
                top_p=_TOP_P,
                num_beams=1,
                num_return_sequences=self._config.captions,
                max_new_tokens=self._config.max_tokens,
                pad_token_id=self._pad,
            )
        asked = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        said = self._tokenizer.batch_decode(tokens_NL[:, asked:], skip_special_tokens=True)
        return [re.sub(r"\s+", " ", text).strip() for text in said]

    def _tensors(self, image: Image.Image) -> dict[str, torch.Tensor]:
        if self._processor is None:
            made = self._images(images=[image], return_tensors="pt")
        else:
            content = [{"type": "image"}, {"type": "text", "text": _PROMPT}]
            text = self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            made = self._processor(text=[text], images=[image], return_tensors="pt")
        return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """What is drawn within follows from the seed, and no other draw of the process is disturbed."""
        cards = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed % 2**63)
            yield


def load(config: CaptionerConfig, device: str | None = None) -> Captioner:
    """The model that `config` names. Raises ModelError.

    device   overrides config.device: "cuda:1" where Spark gave the task that card
    """
    transformers = hugging_face.transformers(SETTING)
    hugging_face.check(config.model, SETTING)
    where, revision = hugging_face.place(config.model)
    trusted = hugging_face.trusted(revision)
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    try:
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            where, dtype=dtype, use_safetensors=True, **trusted
        )
        whole = transformers.AutoProcessor.from_pretrained(where, **trusted)
        # An encoder-decoder has no processor of its own kind: the one that comes is that of its images or its texts.
        images = getattr(whole, "image_processor", None) or transformers.AutoImageProcessor.from_pretrained(
            where, **trusted
        )
        tokenizer = getattr(whole, "tokenizer", None) or transformers.AutoTokenizer.from_pretrained(where, **trusted)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError ... for what it does not know
        raise ModelError(
            f"{SETTING}={config.model} does not load: {first_line(error)}. A model of transformers' class "
            "image-text-to-text with safetensors, image processor and tokenizer is wanted"
        ) from error
    chats = whole if getattr(whole, "chat_template", None) else None
    return Captioner(model, images, tokenizer, chats, config, choose_device(device or config.device, SETTING))


def fingerprint(config: CaptionerConfig) -> str:
    """32 hex characters that change with what would be said. Raises ModelError where a folder is missing."""
    return hugging_face.fingerprint(
        config.model, SETTING, dtype=config.dtype, max_tokens=config.max_tokens, asking=_ASKING, top_p=_TOP_P
    )
