"""A cross-encoder: each candidate is read together with the mention in its text.

    [CLS] text with [ mention ] [SEP]  candidate 1 [SEP]  candidate 2 [SEP] …

All candidates of a mention go through the encoder as one row. Tokens of the text see the text; those of a candidate see
the text and themselves, and stand at the positions behind the text: so each candidate gets what it would get alone, in
whatever order and company, and the text is encoded once for all of them. Its score is a small network's of three
vectors: the mean of the candidate's tokens c, of the mention's m, and c ∘ m. "None of these" is scored by m and that of
[CLS].

The encoder is one of BERT's form (positions as numbers, two types of segments).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from i2e_pipeline.rerank.questions import Asked
from i2e_pipeline.rerank.scorer import (
    I64,
    TEXT_TOKENS,
    Rows,
    Scorer,
    layers_of,
    marked,
    mean,
)


@dataclass(frozen=True)
class CrossRows(Rows):
    """Questions as tensors: Q rows of L tokens."""

    ids: Tensor
    """(Q, L)"""
    part: Tensor
    """(Q, L): 0 the text, 1 … K the candidates, -1 nothing."""
    position: Tensor
    """(Q, L)"""
    mention: Tensor
    """(Q, L): bool, tokens of the mention."""
    there: Tensor
    """(Q, K): bool, whether the question has so many candidates."""


class CrossEncoder(Scorer):
    kind = "cross"

    def __init__(self, encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.tokenizer = tokenizer
        width = encoder.config.hidden_size
        self.of_candidate = nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, 1))
        self.of_none = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))
        for head in (self.of_candidate, self.of_none):  # at first the fast path alone counts
            for parameter in head[-1].parameters():
                nn.init.zeros_(parameter)

    def rows(
        self,
        asked: Asked,
        numbers: I64,
        *,
        order: np.random.Generator | None = None,
        length: int | None = None,
        width: int | None = None,
    ) -> CrossRows:
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        texts = marked(self.tokenizer, asked, numbers, TEXT_TOKENS)
        told = self.candidates(asked, numbers)
        sizes = [len(text) + 2 + sum(len(t) + 1 for t in of) for (text, *_), of in zip(texts, told, strict=True)]
        length, width = length or max(sizes), width or max(map(len, told))
        ids, part = np.zeros((len(numbers), length), np.int64), np.full((len(numbers), length), -1, np.int64)
        position, mention = np.zeros((len(numbers), length), np.int64), np.zeros((len(numbers), length), bool)
        there = np.zeros((len(numbers), width), bool)
        for row, ((text, begin, end), of) in enumerate(zip(texts, told, strict=True)):
            behind = len(text) + 2
            ids[row, :behind], part[row, :behind] = [first, *text, last], 0
            position[row, :behind] = np.arange(behind)
            mention[row, begin + 1 : end + 1] = True
            start = behind
            for k, tokens in enumerate(of):
                stop = start + len(tokens) + 1
                ids[row, start:stop], part[row, start:stop] = [*tokens, last], k + 1
                position[row, start:stop] = np.arange(behind, behind + stop - start)
                start = stop
            there[row, : len(of)] = True
        place = np.concatenate([np.arange(1, len(of) + 1) for of in told])
        tensors = {"ids": ids, "part": part, "position": position, "mention": mention, "there": there}
        return CrossRows(place=place, **{name: torch.from_numpy(of) for name, of in tensors.items()})

    def lengths(self, asked: Asked, numbers: I64) -> I64:
        texts = marked(self.tokenizer, asked, numbers, TEXT_TOKENS)
        of_candidates = [sum(len(t) + 1 for t in of) for of in self.candidates(asked, numbers)]
        return np.array([len(t) + 2 + n for (t, *_), n in zip(texts, of_candidates, strict=True)], dtype=np.int64)

    def tokens(self, asked: Asked, numbers: I64) -> int:
        return int(self.lengths(asked, numbers).sum())

    def pretrained(self) -> Any:
        return self.encoder

    def from_below(self) -> list[nn.Module]:
        return layers_of(self.encoder)

    def forward(self, rows: CrossRows) -> Tensor:
        part = rows.part
        of_text = (part == 0)[:, None, :] & (part >= 0)[:, :, None]
        # What is nothing sees itself, so that no row of the softmax is empty.
        seen = (part[:, :, None] == part[:, None, :]) | of_text
        hidden = self.encoder(
            input_ids=rows.ids,
            attention_mask=seen[:, None],
            token_type_ids=(part > 0).long(),
            position_ids=rows.position,
        ).last_hidden_state.float()
        m = mean(hidden, rows.mention[:, None, :]).squeeze(1)
        numbers = torch.arange(1, rows.there.shape[1] + 1, device=part.device)
        c = mean(hidden, part[:, None, :] == numbers[None, :, None])
        of_mention = m[:, None, :].expand_as(c)
        score = self.of_candidate(torch.cat([c, of_mention, c * of_mention], dim=-1)).squeeze(-1)
        none = self.of_none(torch.cat([m, hidden[:, 0]], dim=-1))
        return torch.cat([none, score.masked_fill(~rows.there, -torch.inf)], dim=1)
