"""What the numbers of `scores` are measured by: the background, the types, and the vocabulary.

Cosines of two models cannot be compared, and a high one says little: so each is held against the image's cosines to
entities that the caption does not name. Background entities stand for "anything", exemplars for coarse types, and the
vocabulary for what else the picture might be: of two apples that look alike a caption names the wrong one with the
same right, so the image itself is asked, as in zero-shot classification (CLIP, arXiv 2103.00020).

Products with the many are made on the encoder's card, where it has one, and only what is needed of them leaves it. They
are of float64 everywhere: the sum of float32 products depends on the shape of the matrices, and so on a pair's
neighbours.

Legend: N images, P (pair, entity) rows, M background entities, V words held against, T types, D the model's width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from i2e_pipeline.score.entity_vectors import EntityVectors
from wikidata.types import TYPES, UNKNOWN

BEST = 3
"""Exemplars of a type that an image is held against: those that it fits best. One alone is a matter of luck, and no
image fits half of all animals."""
CELLS = 1 << 24
"""Cosines of images with words that are in memory at once: 128 MiB."""
WHOLE, NAME, DESCRIPTION = "vector", "name_vector", "description_vector"
"""The vectors of an entity, as `EntityVectors` calls them."""


@dataclass(frozen=True)
class Fits:
    """What is needed of the cosines of images with all words."""

    best_N2: np.ndarray
    """The two highest cosines with the vocabulary, in any order, -inf where there are fewer."""
    whose_N2: np.ndarray
    """The entities that they are with."""
    std_N: np.ndarray
    """The standard deviation of all."""
    type_NTB: np.ndarray
    """The highest cosines with each type's exemplars, rising; NaN for a type without."""


@dataclass(frozen=True)
class _Words:
    """What images are held against, by one of an entity's vectors."""

    ids_V: np.ndarray
    vectors_VD: torch.Tensor
    is_word_V: torch.Tensor
    """Which of them are the vocabulary; the others stand for types alone."""
    of_type: Mapping[int, torch.Tensor]
    """Their places, by the code of the type that they stand for."""


class Measure:
    """Cosines of images with entities, and what they are held against."""

    def __init__(
        self,
        vectors: EntityVectors,
        background: Sequence[int] | np.ndarray,
        exemplars: Mapping[str, Sequence[int]],
        per_type: int,
        vocabulary: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        background   entities that stand for "anything"; of fewer than two, nothing is measured by them
        exemplars    by coarse type its most famous entities, by falling fame
        per_type     so many of each stand for the type, if they are more than BEST
        vocabulary   so many of each are the vocabulary, if all together are more than BEST
        """
        self.vectors = vectors
        # Other devices than a card have no float64.
        self._device = torch.device(device if torch.device(device).type == "cuda" else "cpu")
        ids = np.asarray(background, dtype=np.int64)
        self._background = {}
        if len(ids) >= 2:
            self._background[WHOLE] = vectors.lookup(ids).astype(np.float64)
            for kind in (NAME, DESCRIPTION):
                if vectors.has(kind):
                    self._background[kind] = self._vectors_of(kind, ids).astype(np.float64)
            # A vector of NaN, too, is none: it would be every image's.
            self._background = {kind: m[np.linalg.norm(m, axis=1) > 0] for kind, m in self._background.items()}
        falling = {TYPES.code(t): np.asarray(e, dtype=np.int64) for t, e in exemplars.items()}
        of_type = {code: e[:per_type] for code, e in falling.items() if code != UNKNOWN and len(e[:per_type]) > BEST}
        self._is_exemplar = _union(of_type.values())
        words_V = _union(e[:vocabulary] for e in falling.values())
        if len(words_V) <= BEST:
            words_V = words_V[:0]
        self._words: dict[str, _Words] = {}
        for kind, ids_V, types in (
            (WHOLE, np.union1d(words_V, self._is_exemplar), of_type),
            (DESCRIPTION, words_V, {}),
        ):
            if kind == WHOLE or vectors.has(kind):
                held = self._held(kind, ids_V, words_V, types)
                if len(held.ids_V):
                    self._words[kind] = held

    def _held(self, kind: str, ids_V: np.ndarray, words_V: np.ndarray, types: Mapping[int, np.ndarray]) -> _Words:
        vectors_VD = self._vectors_of(kind, ids_V)
        there_V = np.linalg.norm(vectors_VD, axis=1) > 0
        ids_V = ids_V[there_V]
        at = {code: np.flatnonzero(np.isin(ids_V, e)) for code, e in sorted(types.items())}
        return _Words(
            ids_V,
            self._moved(vectors_VD[there_V].astype(np.float64)),
            self._moved(np.isin(ids_V, words_V)),
            {code: self._moved(places) for code, places in at.items() if len(places) > BEST},
        )

    def _moved(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def cosines(self, kind: str, images_ND: np.ndarray, image_P: np.ndarray, entity_P: np.ndarray) -> np.ndarray:
        """Of each row's image with its entity's vector of this kind."""
        entities, at_P = np.unique(entity_P, return_inverse=True)
        return np.einsum("pd,pd->p", images_ND[image_P], self._vectors_of(kind, entities).astype(np.float64)[at_P])

    def _vectors_of(self, kind: str, entity_ids: np.ndarray) -> np.ndarray:
        return self.vectors.lookup(entity_ids) if kind == WHOLE else self.vectors.of(kind, entity_ids)

    def above_background(
        self, kind: str, images_ND: np.ndarray, image_P: np.ndarray, cosines_P: np.ndarray
    ) -> np.ndarray | None:
        """In standard deviations above the image's mean cosine to the background; None where there is none."""
        background_MD = self._background.get(kind)
        if background_MD is None or len(background_MD) < 2:
            return None
        background_NM = images_ND @ background_MD.T
        mean_N, std_N = background_NM.mean(axis=1), background_NM.std(axis=1)
        return (cosines_P - mean_N[image_P]) / np.maximum(std_N[image_P], 1e-6)

    def held(self, images_ND: np.ndarray) -> dict[str, Fits]:
        """What is needed of each image's cosines with all words, by kind of vector."""
        return {kind: self._fits(words, images_ND) for kind, words in self._words.items()}

    def _fits(self, words: _Words, images_ND: np.ndarray) -> Fits:
        count, types = len(images_ND), len(TYPES.all) + 1
        best_N2, whose_N2 = np.full((count, 2), -np.inf), np.zeros((count, 2), np.int64)
        std_N, type_NTB = np.ones(count), np.full((count, types, BEST + 1), np.nan)
        at_W = torch.nonzero(words.is_word_V).flatten()
        all_are = len(at_W) == len(words.ids_V)
        rows = max(1, CELLS // len(words.ids_V))
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            fit_NV = self._moved(images_ND[part].astype(np.float64)) @ words.vectors_VD.T
            for code, at in words.of_type.items():
                best_NB = torch.topk(fit_NV[:, at], BEST + 1, dim=1, sorted=False).values
                type_NTB[part, code] = np.sort(best_NB.cpu().numpy(), axis=1)
            if len(at_W) > 1:
                fit_NW = fit_NV if all_are else fit_NV[:, at_W]
                two = torch.topk(fit_NW, 2, dim=1, sorted=False)
                best_N2[part] = two.values.cpu().numpy()
                whose_N2[part] = words.ids_V[at_W[two.indices].cpu().numpy()]
                std_N[part] = fit_NW.std(dim=1, correction=0).cpu().numpy()
        return Fits(best_N2, whose_N2, std_N, type_NTB)

    def below_vocabulary(
        self, fits: Fits | None, image_P: np.ndarray, entity_P: np.ndarray, cosines_P: np.ndarray
    ) -> np.ndarray | None:
        """How much less each row's image fits its entity than what it fits best of the vocabulary, the entity itself
        left out, in standard deviations of the image's cosines with the vocabulary; None without a vocabulary.

        fits        as `held` gives them for the kind of vector that cosines_P, (P), are with
        """
        if fits is None or np.isneginf(fits.best_N2).any():
            return None
        others_P2 = np.where(fits.whose_N2[image_P] == entity_P[:, None], -np.inf, fits.best_N2[image_P])
        return (others_P2.max(axis=1) - cosines_P) / np.maximum(fits.std_N[image_P], 1e-6)

    def types(
        self, fits: Fits | None, image_P: np.ndarray, entity_P: np.ndarray, cosines_P: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """type_z and type_gap of each row, NaN where its type is unknown or has no exemplars; None of fewer than two
        types.

        cosines_P   of each row's image with its entity, as `cosines("vector", …)` gives them
        """
        if fits is None or len(self._words[WHOLE].of_type) < 2 or not self.vectors.has("type"):
            return None
        fit_NT = fits.type_NTB[:, :, 1:].mean(axis=2)
        third_NT, fourth_NT = fits.type_NTB[:, :, 1], fits.type_NTB[:, :, 0]
        mean_N, std_N = np.nanmean(fit_NT, axis=1), np.maximum(np.nanstd(fit_NT, axis=1), 1e-6)
        at = (image_P, self.vectors.of("type", entity_P).astype(np.int64))
        # Whoever is an exemplar itself is held against the others, so that fame is no proof.
        counted_P = np.isin(entity_P, self._is_exemplar) & (cosines_P >= third_NT[at] - 1e-9)
        fit_P = np.where(counted_P, fit_NT[at] + (fourth_NT[at] - cosines_P) / BEST, fit_NT[at])
        best_P = np.fmax(
            np.nanmax(np.where(_other_types(len(fit_NT[0]), at[1]), fit_NT[image_P], np.nan), axis=1), fit_P
        )
        return (fit_P - mean_N[image_P]) / std_N[image_P], (best_P - fit_P) / std_N[image_P]


def _union(lists: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.empty(0, np.int64), *lists]))


def _other_types(types: int, type_P: np.ndarray) -> np.ndarray:
    """bool (P, types): the types that are not the row's own."""
    return np.arange(types)[None, :] != (type_P % types)[:, None]
