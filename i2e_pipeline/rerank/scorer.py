"""What all rerankers are to those that train and ask them, and what they share of Hugging Face's models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.rerank.questions import CANDIDATE_TOKENS, Asked

if TYPE_CHECKING:
    from typing_extensions import Self

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

TEXT_TOKENS = 64
"""Tokens of the text that are kept, around the mention."""


class RerankerError(I2EError, ValueError):
    """A reranker that cannot be loaded, trained or asked; the message says the remedy."""


@dataclass(frozen=True)
class Rows:
    """Some questions as tensors."""

    place: I64
    """Of each candidate of the questions, in their order, its column in the scores."""

    def to(self, device: str) -> Self:
        moved: dict[str, Any] = {name: of.to(device) for name, of in vars(self).items() if isinstance(of, Tensor)}
        return replace(self, **moved)


class Scorer(nn.Module, ABC):
    """A reranker's network."""

    kind: str
    tokenizer: Any
    candidate_tokens: int = CANDIDATE_TOKENS

    @abstractmethod
    def rows(
        self,
        asked: Asked,
        numbers: I64,
        *,
        order: np.random.Generator | None = None,
        length: int | None = None,
        width: int | None = None,
    ) -> Any:
        """Some questions as tensors.

        order    draws the candidates' order, in training; None: they stand as the fast path has ranked them
        length   tokens that a row is filled up to; None: those of the longest
        width    candidates that a row is filled up to; None: those of the longest
        """

    def candidates(self, asked: Asked, numbers: I64) -> list[list[list[int]]]:
        """Tokens of what is told of each candidate of these questions, without special ones."""
        ranges = [asked.range_of(n) for n in numbers]
        tokens = iter(
            tokens_of(self.tokenizer, [asked.told[i] for of in ranges for i in range(*of)], self.candidate_tokens)
        )
        return [[next(tokens) for _ in range(*of)] for of in ranges]

    @abstractmethod
    def forward(self, rows: Any) -> Tensor:
        """(Q, 1 + K): scores of "none of these" and of each candidate, in logits; -inf where there is none."""

    @abstractmethod
    def lengths(self, asked: Asked, numbers: I64) -> I64:
        """Tokens of each of these questions' rows."""

    @abstractmethod
    def tokens(self, asked: Asked, numbers: I64) -> int:
        """Tokens that the encoder reads for these questions, empty ones not counted."""

    @abstractmethod
    def pretrained(self) -> Any:
        """The part that Hugging Face saves and loads."""

    def added(self) -> dict[str, Tensor]:
        """The parameters beside it, by name."""
        inside = {id(p) for p in self.pretrained().parameters()}
        return {name: p.detach().contiguous() for name, p in self.named_parameters() if id(p) not in inside}

    @abstractmethod
    def from_below(self) -> list[nn.Module]:
        """The pretrained layers, embeddings first."""


def scores_of(
    model: Scorer, asked: Asked, numbers: I64, device: str = "cpu", bfloat16: bool = False, batch: int = 16
) -> tuple[F64, F64]:
    """(C) and (Q): the score of each candidate, and of "none of these", in logits; 0 for questions that are not asked.

    Questions of about one length go through the model in batches of one shape, the last one filled up: what a question
    gets does not depend on the others.
    """
    model.eval()
    score, none = np.zeros(len(asked.mention)), np.zeros(len(asked))
    lengths = model.lengths(asked, numbers)
    counts = asked.counts()[numbers]
    shapes = np.stack([_rounded(lengths, 16), _rounded(counts, 4)], axis=1)
    with torch.inference_mode(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bfloat16):
        for length, width in np.unique(shapes, axis=0):
            alike = numbers[(shapes == (length, width)).all(axis=1)]
            for start in range(0, len(alike), batch):
                some = alike[start : start + batch]
                filled = np.concatenate([some, np.repeat(some[:1], batch - len(some))])
                rows = model.rows(asked, filled, length=int(length), width=int(width))
                found = model(rows.to(device))[: len(some)].float().cpu()
                score[asked.places(some)], none[some] = flat_of(found, asked, some)
    return np.round(score * _GRID) / _GRID, np.round(none * _GRID) / _GRID


_GRID = 1024
"""Scores are told to this part of a logit."""


def _rounded(sizes: I64, step: int) -> I64:
    return -(-sizes // step) * step


def flat_of(scores: Tensor, asked: Asked, numbers: I64) -> tuple[F64, F64]:
    """Scores (Q, 1 + K) of rising `numbers`, candidates in their order, as one per candidate and one per question."""
    values = scores.double().numpy()
    counts = asked.counts()[numbers]
    there = np.arange(values.shape[1] - 1)[None, :] < counts[:, None]
    return values[:, 1:][there], values[:, 0]


Marked = tuple[list[int], int, int]
"""Tokens, and where those of the mention begin and end among them."""


def marked(tokenizer: Any, asked: Asked, numbers: Sequence[int] | I64, most: int) -> list[Marked]:
    """The tokens of some questions' texts without special ones, cut to `most` around the mention, which stands between
    brackets."""
    opened, closed = (tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in ("[", "]"))
    parts = [
        part
        for text, start, end in ((asked.texts[n], asked.starts[n], asked.ends[n]) for n in numbers)
        for part in (text[:start], text[start:end], text[end:])
    ]
    ids = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"] if parts else []
    found = []
    for n in range(0, len(ids), 3):
        before, mention, after = ids[n : n + 3]
        mention = mention[: most // 2]
        room = most - len(mention) - len(opened) - len(closed)
        left = min(len(before), max(room // 2, room - len(after)))
        right = min(len(after), room - left)
        tokens = [*before[len(before) - left :], *opened, *mention, *closed, *after[:right]]
        first = left + len(opened)
        found.append((tokens, first, first + max(len(mention), 1)))
    return found


def tokens_of(tokenizer: Any, told: Sequence[str], most: int) -> list[list[int]]:
    """The tokens of what is told of each candidate, without special ones; each distinct text is tokenized once."""
    distinct = sorted(set(told))
    if not distinct:
        return []
    ids = tokenizer(distinct, add_special_tokens=False, truncation=True, max_length=most, verbose=False)["input_ids"]
    of = dict(zip(distinct, ids, strict=True))
    return [of[text] for text in told]


def layers_of(encoder: nn.Module) -> list[nn.Module]:
    """The layers of a Hugging Face encoder from below, the embeddings first."""
    lists = [m for m in encoder.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise RerankerError(f"{type(encoder).__name__} has no list of layers: take an encoder of layers")
    # With the places' and segments' and their norm, where the model has them in one module.
    embeddings = getattr(encoder, "embeddings", None) or encoder.get_input_embeddings()  # type: ignore[operator]
    return [embeddings, *max(lists, key=len)]


def mean(hidden: Tensor, of: Tensor) -> Tensor:
    """Means (Q, K, W) of hidden (Q, L, W) over tokens (Q, K, L: bool); 0 over none."""
    weight = of.to(hidden.dtype)
    return (weight @ hidden) / weight.sum(-1, keepdim=True).clamp(min=1)


def listwise(scores: Tensor, log_probability: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the right choice, with what the fast path says as a start.

    scores           (Q, 1 + K): of "none of these", and of each candidate; -inf where there is none
    log_probability  (Q, 1 + K): of the fast path
    target           (Q): the column of the right one
    """
    return F.cross_entropy(scores + log_probability, target)
