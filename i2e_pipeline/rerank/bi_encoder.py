"""A bi-encoder: mention and candidate are encoded apart, and meet as two vectors.

An entity's vector does not depend on the text, so in a batch each distinct one is made once. Both texts go through one
encoder; the mention's vector is the mean of its tokens and of [CLS], the entity's that of all its
tokens, each behind a layer of its own:

    score(c) = s · cos(f(mention in its text), g(candidate))      score(none) = a number of the mention's vector

Less is known than by a cross-encoder, for a small part of its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from i2e_pipeline.rerank.questions import Asked
from i2e_pipeline.rerank.scorer import (
    I64,
    TEXT_TOKENS,
    Rows,
    Scorer,
    layers_of,
    marked,
    mean,
    tokens_of,
)


@dataclass(frozen=True)
class BiRows(Rows):
    """Q questions, and the D distinct candidates among theirs."""

    ids: Tensor
    """(Q, L)"""
    filled: Tensor
    """(Q, L): bool"""
    mention: Tensor
    """(Q, L): bool, tokens of the mention."""
    told: Tensor
    """(D, M): token ids of the distinct candidates; empty where `vectors` are known."""
    told_filled: Tensor
    """(D, M): bool"""
    which: Tensor
    """(Q, K): the distinct candidate; -1 where there is none."""
    vectors: Tensor | None = None
    """(Q, K, W): unit vectors of the candidates."""


class BiEncoder(Scorer):
    kind = "bi"

    def __init__(self, encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.tokenizer = tokenizer
        width = encoder.config.hidden_size
        self.of_mention, self.of_entity = nn.Linear(2 * width, width), nn.Linear(width, width)
        with torch.no_grad():  # as the encoder was pretrained: the mean of the tokens, for both
            self.of_entity.weight.copy_(torch.eye(width))
            self.of_mention.weight.copy_(torch.cat([torch.eye(width), torch.zeros(width, width)], dim=1))
            self.of_entity.bias.zero_()
            self.of_mention.bias.zero_()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.of_none = nn.Linear(width, 1)
        nn.init.zeros_(self.of_none.weight)
        nn.init.zeros_(self.of_none.bias)

    def rows(
        self,
        asked: Asked,
        numbers: I64,
        *,
        order: np.random.Generator | None = None,
        length: int | None = None,
        width: int | None = None,
    ) -> BiRows:
        ids, filled, mention = self._texts(asked, numbers, length)
        ranges = [asked.range_of(n) for n in numbers]
        width = width or max(end - start for start, end in ranges)
        place = np.concatenate([np.arange(1, end - start + 1) for start, end in ranges])
        which = np.full((len(numbers), width), -1, np.int64)
        if asked.vectors is not None:
            vectors = np.zeros((len(numbers), width, asked.vectors.shape[1]), np.float32)
            for row, (start, end) in enumerate(ranges):
                vectors[row, : end - start], which[row, : end - start] = asked.vectors[start:end], 0
            none = torch.zeros((0, 0), dtype=torch.long)
            return BiRows(place, ids, filled, mention, none, none, torch.from_numpy(which), torch.from_numpy(vectors))
        told = [asked.told[i] for r in ranges for i in range(*r)]
        distinct = {text: n for n, text in enumerate(sorted(set(told)))}
        # Asked, all batches have one shape.
        tokens, told_filled = self.told(list(distinct), None if length is None else self.candidate_tokens + 2)
        at = 0
        for row, (start, end) in enumerate(ranges):
            which[row, : end - start] = [distinct[text] for text in told[at : at + end - start]]
            at += end - start
        return BiRows(place, ids, filled, mention, tokens, told_filled, torch.from_numpy(which))

    def _texts(self, asked: Asked, numbers: I64, length: int | None) -> tuple[Tensor, Tensor, Tensor]:
        texts = marked(self.tokenizer, asked, numbers, TEXT_TOKENS)
        length = length or max(len(text) for text, *_ in texts) + 2
        ids = np.zeros((len(numbers), length), np.int64)
        filled, mention = np.zeros((2, len(numbers), length), bool)
        for row, (text, begin, end) in enumerate(texts):
            ids[row, : len(text) + 2] = [self.tokenizer.cls_token_id, *text, self.tokenizer.sep_token_id]
            filled[row, : len(text) + 2] = True
            mention[row, begin + 1 : end + 1] = True
        return torch.from_numpy(ids), torch.from_numpy(filled), torch.from_numpy(mention)

    def told(self, told: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Token ids and which of them count, (D, M), of what is told of candidates."""
        tokens = tokens_of(self.tokenizer, told, self.candidate_tokens)
        length = length or max((len(t) for t in tokens), default=0) + 2
        ids, filled = np.zeros((len(tokens), length), np.int64), np.zeros((len(tokens), length), bool)
        for row, of in enumerate(tokens):
            ids[row, : len(of) + 2] = [self.tokenizer.cls_token_id, *of, self.tokenizer.sep_token_id]
            filled[row, : len(of) + 2] = True
        return torch.from_numpy(ids), torch.from_numpy(filled)

    def lengths(self, asked: Asked, numbers: I64) -> I64:
        texts = marked(self.tokenizer, asked, numbers, TEXT_TOKENS)
        return np.array([len(text) + 2 for text, *_ in texts], dtype=np.int64)

    def tokens(self, asked: Asked, numbers: I64) -> int:
        """Of candidates those of each distinct text once: their vectors are kept."""
        distinct = sorted({asked.told[i] for i in asked.places(numbers)})
        of_candidates = tokens_of(self.tokenizer, distinct, self.candidate_tokens)
        return int(self.lengths(asked, numbers).sum()) + sum(len(t) + 2 for t in of_candidates)

    def pretrained(self) -> Any:
        return self.encoder

    def from_below(self) -> list[nn.Module]:
        return layers_of(self.encoder)

    def entities(self, ids: Tensor, filled: Tensor) -> Tensor:
        """Unit vectors (D, W) of what is told of candidates."""
        hidden = self.encoder(input_ids=ids, attention_mask=filled.long()).last_hidden_state.float()
        return F.normalize(self.of_entity(mean(hidden, filled[:, None, :]).squeeze(1)), dim=-1)

    def mentions(self, ids: Tensor, filled: Tensor, mention: Tensor) -> Tensor:
        """Vectors (Q, W) of mentions in their texts, of whatever length."""
        hidden = self.encoder(input_ids=ids, attention_mask=filled.long()).last_hidden_state.float()
        text, of_mention = (mean(hidden, of[:, None, :]).squeeze(1) for of in (filled, mention))
        return self.of_mention(torch.cat([text, of_mention], dim=-1))

    def forward(self, rows: BiRows) -> Tensor:
        entities = rows.vectors
        if entities is None:
            entities = self.entities(rows.told, rows.told_filled)[rows.which.clamp(min=0)]
        return self.scores(self.mentions(rows.ids, rows.filled, rows.mention), entities, rows.which >= 0)

    def scores(self, mentions: Tensor, entities: Tensor, there: Tensor) -> Tensor:
        """(Q, 1 + K) of mentions (Q, W) and the unit vectors of their candidates (Q, K, W)."""
        cosine = (F.normalize(mentions, dim=-1)[:, None, :] * entities).sum(-1)
        return torch.cat([self.of_none(mentions), (self.scale * 10 * cosine).masked_fill(~there, -torch.inf)], dim=1)
