"""Fusion: a decoder reads all candidates at once and says which one is meant.

    encoder, for each candidate n:   n candidate [SEP] text with [ mention ] [SEP]
    decoder, over all of them:       the number of the entity that is meant; 0 is "none of these"

The encoder reads each candidate with the mention in its text, the decoder attends to what it made of all of them
(fusion in the decoder: Izacard and Grave, EACL 2021; for entities "Entity Disambiguation via Fusion Entity Decoding",
NAACL 2024). There the decoder generates the entity's title. Here it generates its number, since namesakes share their
title; in training the candidates are shuffled, so a number means nothing by itself. A number is generated or copied
(See et al., ACL 2017): its score is its token's logit, and how well the decoder's state fits what the encoder made of
the number's place in front of the candidate. Decoders that were not pretrained to copy hardly learn it without.

Any encoder–decoder of Hugging Face's form will do.
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
    RerankerError,
    Rows,
    Scorer,
    layers_of,
    marked,
)


@dataclass(frozen=True)
class FusionRows(Rows):
    """Q questions with K candidates each; a text stands in as many rows as it has candidates."""

    ids: Tensor
    """(Q, K, L)"""
    filled: Tensor
    """(Q, K, L): bool"""
    there: Tensor
    """(Q, K): bool"""


class Fusion(Scorer):
    kind = "fusion"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer = tokenizer
        self.first = [tokenizer.cls_token_id] if tokenizer.cls_token_id is not None else []
        self.last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        self.scale = nn.Parameter(torch.tensor(0.1))  # at first the fast path counts nearly alone
        width = model.get_encoder().config.hidden_size
        self.copied, self.of_none = nn.Linear(width, width), nn.Linear(width, 1)
        for parameter in (*self.copied.parameters(), *self.of_none.parameters()):
            nn.init.zeros_(parameter)

    def number(self, n: int) -> int:
        """The token that stands for a number."""
        ids = self.tokenizer(str(n), add_special_tokens=False)["input_ids"]
        # Of "▁7" the last token is the number itself; of "12" it may be the 2.
        if self.tokenizer.decode(ids[-1:]).strip() != str(n):
            raise RerankerError(f"the tokenizer of this model has no token for {n}: it cannot tell so many candidates")
        return int(ids[-1])

    def rows(
        self,
        asked: Asked,
        numbers: I64,
        *,
        order: np.random.Generator | None = None,
        length: int | None = None,
        width: int | None = None,
    ) -> FusionRows:
        texts = marked(self.tokenizer, asked, numbers, TEXT_TOKENS)
        told = self.candidates(asked, numbers)
        width = width or max(map(len, told))
        read: list[list[list[int]]] = []
        places = []
        for (text, *_), tokens_of_each in zip(texts, told, strict=True):
            count = len(tokens_of_each)
            place = np.arange(count) if order is None else order.permutation(count)
            of_question: list[list[int]] = [[] for _ in range(count)]
            for k, tokens in zip(place, tokens_of_each, strict=True):
                of_question[k] = [*self.first, self.number(int(k) + 1), *tokens, self.last, *text, self.last]
            read.append(of_question)
            places.append(place + 1)
        length = length or max(len(ids) for of in read for ids in of)
        ids = np.full((len(numbers), width, length), self.tokenizer.pad_token_id or 0, np.int64)
        filled, there = np.zeros(ids.shape, bool), np.zeros(ids.shape[:2], bool)
        for row, of in enumerate(read):
            for k, tokens in enumerate(of):
                ids[row, k, : len(tokens)], filled[row, k, : len(tokens)], there[row, k] = tokens, True, True
        return FusionRows(
            np.concatenate(places), torch.from_numpy(ids), torch.from_numpy(filled), torch.from_numpy(there)
        )

    def lengths(self, asked: Asked, numbers: I64) -> I64:
        texts = marked(self.tokenizer, asked, numbers, TEXT_TOKENS)
        longest = [max(map(len, of), default=0) for of in self.candidates(asked, numbers)]
        around = len(self.first) + 3
        return np.array([len(t) + n + around for (t, *_), n in zip(texts, longest, strict=True)], dtype=np.int64)

    def tokens(self, asked: Asked, numbers: I64) -> int:
        """Each text once with each of its candidates."""
        texts = marked(self.tokenizer, asked, numbers, TEXT_TOKENS)
        around = len(self.first) + 3
        told = self.candidates(asked, numbers)
        return sum(len(text) + len(t) + around for (text, *_), of in zip(texts, told, strict=True) for t in of)

    def pretrained(self) -> Any:
        return self.model

    def from_below(self) -> list[nn.Module]:
        return layers_of(self.model.get_encoder())

    def forward(self, rows: FusionRows) -> Tensor:
        questions, width, length = rows.ids.shape
        # In training empty places are not encoded. Asked, they are, so that all batches have one shape; then an empty
        # place sees its first token, and nothing sees it.
        encoded = rows.there if self.training else torch.ones_like(rows.there)
        seen = rows.filled | (~rows.there[:, :, None] & (torch.arange(length, device=rows.ids.device) == 0))
        hidden_of = self.model.get_encoder()(
            input_ids=rows.ids[encoded], attention_mask=seen[encoded].long()
        ).last_hidden_state
        hidden = hidden_of.new_zeros(questions, width, length, hidden_of.shape[-1])
        hidden[encoded] = hidden_of
        start = self.model.config.decoder_start_token_id
        begun = torch.full((questions, 1), start, dtype=torch.long, device=rows.ids.device)
        from transformers.modeling_outputs import BaseModelOutput

        out = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden.reshape(questions, width * length, -1)),
            attention_mask=rows.filled.reshape(questions, -1).long(),
            decoder_input_ids=begun,
            output_hidden_states=True,
        )
        tokens = torch.tensor([self.number(n) for n in range(width + 1)], device=hidden.device)
        generated = self.scale * out.logits[:, 0, tokens].float()
        state = out.decoder_hidden_states[-1][:, 0].float()
        at_number = hidden[:, :, len(self.first)].float()
        copied = (self.copied(at_number) @ state[:, :, None]).squeeze(-1) / state.shape[-1] ** 0.5
        of = (generated[:, 1:] + copied).masked_fill(~rows.there, -torch.inf)
        return torch.cat([generated[:, :1] + self.of_none(state), of], dim=1)
