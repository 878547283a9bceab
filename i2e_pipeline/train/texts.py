"""Texts: which text an image is contrasted with, and its tokens.

Reads    alt-text of the image; name and description of the entity that was drawn for it
Writes   tokens_BL: int64

Legend: B images, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch

Tokenizer = Callable[[list[str]], torch.Tensor]
"""Texts to tokens_NL, int64, as open_clip.get_tokenizer gives it."""
KINDS = ("alt_text", "name", "name_and_description")
_REMEMBERED = 65_536
"""Texts whose tokens are kept: the tokenizer takes 0.1 ms for a text, and entities' texts come again and again."""


def described(template: str, name: str, description: str | None) -> str | None:
    """Name and description of an entity as one text; None without a description."""
    return template.format(name=name, description=description) if description else None


class Texts:
    """Draws texts and tokenises them; for one thread at a time."""

    def __init__(self, entities: pa.Table, probabilities: Sequence[float], template: str, tokenizer: Tokenizer) -> None:
        """entities: name and description by class index; probabilities: of KINDS, not all of them 0."""
        weights = np.asarray(probabilities, dtype=np.float64)
        self._until = np.cumsum(weights / weights.sum())
        self._names = entities.column("name").combine_chunks()
        self._descriptions = entities.column("description").combine_chunks()
        self._template = template
        self._tokenizer = tokenizer
        self._tokens: dict[str, torch.Tensor] = {}

    def drawn(self, uniform_B: np.ndarray, alt_texts: Sequence[str], class_B: np.ndarray) -> list[str]:
        """The text of each image, by a number in [0, 1) for each. An entity without description is told by name."""
        return [
            alt_text if kind == 0 else self.of_entity(index, kind == 2)
            for kind, alt_text, index in zip(self.kinds(uniform_B).tolist(), alt_texts, class_B.tolist(), strict=True)
        ]

    def kinds(self, uniform_B: np.ndarray) -> np.ndarray:
        """The place in KINDS of each image's text, by the same numbers."""
        # The last kind that can be drawn: rounding may leave the sum of the probabilities just below 1.
        last = int(np.searchsorted(self._until, self._until[-1]))
        return np.searchsorted(self._until, uniform_B, side="right").clip(max=last)

    def of_entity(self, class_index: int, with_description: bool) -> str:
        name: str = self._names[class_index].as_py()
        if not with_description:
            return name
        return described(self._template, name, self._descriptions[class_index].as_py()) or name

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """tokens_BL of the texts. Tokens are kept for the next time; the store is emptied when it would be too full."""
        new = list(dict.fromkeys(t for t in texts if t not in self._tokens))
        if len(self._tokens) + len(new) > _REMEMBERED:
            self._tokens.clear()
            new = list(dict.fromkeys(texts))
        if new:
            # int32: half the memory of what the tokenizer gives.
            self._tokens.update(zip(new, self._tokenizer(new).to(torch.int32), strict=True))
        return torch.stack([self._tokens[t] for t in texts]).long()
