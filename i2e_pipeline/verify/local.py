"""A model of transformers that answers questions about images, in this process.

Reads    local-dir:FOLDER or hf-hub:ORG/NAME[@REVISION]: any model that AutoModelForImageTextToText loads, with its
         processor and chat template
Writes   answers, decoded greedily

Legend: N questions, L tokens.

The same question has the same answer in whatever company: each is prepared by itself and padded on the left to a
multiple of tokens that depends on its own length alone; only questions whose tensors have equal shapes share a batch;
and every batch has the same number of rows, the last one filled up with copies, since matrix kernels differ by shape in
the last bits. So order, partitions and what was answered before change nothing.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from i2e_pipeline.core.config import VerifyConfig
from i2e_pipeline.core.errors import first_line
from i2e_pipeline.core.machine import choose_device
from i2e_pipeline.images import hugging_face
from i2e_pipeline.images.models import ModelError
from i2e_pipeline.verify.asking import Failed, Question, VerifierError

PREPARING = 1
"""To be raised when this file makes other tensors of the same question."""
_MULTIPLE = 64
"""Tokens: questions are padded to multiples of so many."""


class Local:
    """One model on one device. It is for one thread at a time."""

    def __init__(self, model: Any, processor: Any, config: VerifyConfig, device: str) -> None:
        self.name = f"verify.model={config.model}"
        self.at_once = config.batch_size
        self.device = torch.device(device)
        self._model, self._processor, self._config = (
            model.eval().requires_grad_(False).to(self.device),
            processor,
            config,
        )
        self._rows_at_once = config.batch_size
        tokenizer = processor.tokenizer
        self._pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def answers(
        self, asked: Sequence[Question], enough: Callable[[], bool] = lambda: False
    ) -> Generator[list[tuple[int, str | Failed]], None, None]:
        """`enough` is not asked: a model that runs here answers or raises."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        prepared = []
        for number, question in enumerate(asked):
            tensors = self._padded(self._tensors(question))
            prepared.append(tensors)
            shape = tuple((name, tuple(t.shape)) for name, t in sorted(tensors.items()))
            groups.setdefault(shape, []).append(number)
        for numbers in groups.values():
            at = 0
            while at < len(numbers):
                size = self._rows_at_once
                some = numbers[at : at + size]
                filled = [*some, *(some[-1:] * (size - len(some)))]
                try:
                    said = self._said([prepared[n] for n in filled])
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    self._rows_at_once = max(1, size // 2)
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                    continue
                yield list(zip(some, said, strict=False))
                at += size

    def _tensors(self, question: Question) -> dict[str, torch.Tensor]:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        made = self._processor(text=[text], images=[question.image], return_tensors="pt")
        return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}

    def _padded(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What there is a number of for each token, padded on the left: with the padding token, else with 0."""
        shape = tensors["input_ids"].shape
        short = -shape[1] % _MULTIPLE
        tensors.setdefault("attention_mask", torch.ones(shape, dtype=torch.int64))
        return {
            name: torch.nn.functional.pad(value, (short, 0), value=self._pad if name == "input_ids" else 0)
            if value.shape == shape
            else value
            for name, value in tensors.items()
        }

    def _said(self, rows: Sequence[dict[str, torch.Tensor]]) -> list[str]:
        batch = {name: torch.cat([row[name] for row in rows]).to(self.device) for name in rows[0]}
        batch = {n: t.to(self._model.dtype) if t.is_floating_point() else t for n, t in batch.items()}
        with torch.inference_mode():
            tokens_NL = self._model.generate(
                **batch,
                max_new_tokens=self._config.max_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self._pad,
            )
        length = batch["input_ids"].shape[1]
        said: list[str] = self._processor.batch_decode(tokens_NL[:, length:], skip_special_tokens=True)
        return said


def load(config: VerifyConfig, *, threads: int | None = None, device: str | None = None) -> Local:
    """The model that `config` names. Raises VerifierError.

    threads  CPU threads a forward pass may use: the task's cores; None: as torch finds them
    device   overrides config.device: "cuda:1" where Spark gave the task that card
    """
    with _as_verifiers():
        transformers = hugging_face.transformers("verify.model")
    if threads is not None:
        torch.set_num_threads(threads)
    where, revision = hugging_face.place(config.model)
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    trusted = hugging_face.trusted(revision)
    try:
        processor = transformers.AutoProcessor.from_pretrained(where, **trusted)
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            where, dtype=dtype, use_safetensors=True, **trusted
        )
        if hasattr(model, "generation_config"):
            # Greedy, whatever the model comes with: its settings for drawing would be warned of with every batch.
            for drawn in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
                setattr(model.generation_config, drawn, None)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError ... for what it does not know
        raise VerifierError(
            f"verify.model={config.model} does not load: {first_line(error)}. A model of "
            "transformers' class image-text-to-text with safetensors and a processor is wanted"
        ) from error
    if not getattr(processor, "chat_template", None):
        raise VerifierError(
            f"verify.model={config.model} has no chat template: take a model that was tuned to instructions"
        )
    return Local(model, processor, config, choose_device(device or config.device, "verify.device"))


_loaded: dict[tuple[Any, ...], Local] = {}
_loading = threading.Lock()


def load_once(
    config: VerifyConfig, fingerprint: str, *, threads: int | None = None, device: str | None = None
) -> Local:
    """`load`, kept for the life of the worker process. Another model or device takes the old one's place."""
    key = (os.getpid(), fingerprint, config.batch_size, config.max_tokens, device or config.device)
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = load(config, threads=threads, device=device)
        elif threads is not None:
            torch.set_num_threads(threads)
        return _loaded[key]


def check(config: VerifyConfig) -> None:
    """Raise VerifierError where the model cannot be had here: transformers is missing, or the folder holds no model.

    Loads no weights, so that a driver can ask before any work.
    """
    with _as_verifiers():
        hugging_face.transformers("verify.model")
        hugging_face.check(config.model, "verify.model")


def fingerprint(config: VerifyConfig) -> str:
    """32 hex characters that change with weights, tokenizer, template, preparation or dtype. Raises VerifierError where
    a folder is missing."""
    with _as_verifiers():
        return hugging_face.fingerprint(config.model, "verify.model", dtype=config.dtype, preparing=PREPARING)


@contextlib.contextmanager
def _as_verifiers() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise VerifierError(str(error)) from None
