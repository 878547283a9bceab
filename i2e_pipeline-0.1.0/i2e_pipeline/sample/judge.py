"""How well a scorer tells what a picture shows, asked as the pipeline asks it: the names of a caption can mean several
entities; which of them does the picture show, if any?

The candidates of a caption are all entities of the world that bear one of its planted names. The answer is the
candidate whose `NAME, DESCRIPTION` is nearest to the picture, if its cosine reaches the threshold. A label also counts
as wrong where the caption names only another entity. Recall is over pictures whose caption names the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from i2e_pipeline.images.decode import open_image
from i2e_pipeline.sample.draws import draw, picture
from i2e_pipeline.sample.world import HELD_OUT_STYLE, Entity, load_world


def text_of(entity: Entity) -> str:
    """What the pipeline asks the scorer about an entity: name, description."""
    return f"{entity.label}, {entity.description}" if entity.description else entity.label


@dataclass(frozen=True)
class Asked:
    """N judged pictures, by row."""

    best: np.ndarray
    """Cosine of the best candidate; -1 where there is none."""
    right: np.ndarray
    """The best candidate is the truth."""
    named: np.ndarray
    """The caption names the truth."""
    held_out: np.ndarray
    """The picture is in the held-out art style."""
    colliding: np.ndarray
    """Another entity bears the name that the caption uses, too."""
    truth_rank: np.ndarray
    """How many drawn entities are nearer to the picture than the truth."""
    truth_cosine: np.ndarray
    stranger_cosine: np.ndarray
    """Cosine to one other drawn entity, chosen at random."""

    def precision_recall(self, threshold: float, where: np.ndarray | None = None) -> tuple[float, float]:
        """Precision of the labels at a threshold on the cosine, and recall over pictures whose caption names the truth.

        where   bool per row: only these are counted
        """
        where = np.ones_like(self.right) if where is None else where
        given = where & (self.best >= threshold)
        right = given & self.right
        return float(right.sum() / max(1, given.sum())), float(right.sum() / max(1, (where & self.named).sum()))

    def threshold_for(self, precision: float) -> float:
        """The lowest threshold that gives this precision; the highest one tried where none does."""
        tried = np.arange(0.0, 0.95, 0.005).tolist()
        good = [t for t in tried if self.precision_recall(t)[0] >= precision]
        return float(good[0] if good else tried[-1])

    def report(self, threshold: float) -> str:
        """A line of figures for all pictures, and one each for the held-out style, the others and shared names."""
        lines = []
        parts = {
            "all": np.ones_like(self.right),
            "held-out style": self.held_out,
            "other styles": ~self.held_out,
            "colliding": self.colliding,
        }
        for name, where in parts.items():
            if not where.any():
                continue
            p, r = self.precision_recall(threshold, where)
            top = float((self.truth_rank[where] == 0).mean())
            auc = float((self.truth_cosine[where] > self.stranger_cosine[where]).mean())
            three_percent = float(np.quantile(self.stranger_cosine[where], 0.97))
            at3 = float((self.truth_cosine[where] >= three_percent).mean())
            lines.append(
                f"{name:14s} n {int(where.sum()):5d}  top-1 of all {top:.3f}  truth above a stranger {auc:.3f}  "
                f"recall at 3 % false {at3:.3f}  |  precision {p:.3f} recall {r:.3f} at threshold {threshold:.3f}"
            )
        return "\n".join(lines)


@torch.no_grad()
def ask(
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[Sequence[str]], Tensor],
    preprocess: Callable[[Image.Image], Tensor],
    split: str,
    rows: int,
    seed: int = 7,
) -> Asked:
    """Judge the first `rows` draws of a split. Encoders return unit vectors."""
    world = load_world()
    entities = [*world.depicted, *world.others]
    place = {e.id: i for i, e in enumerate(entities)}
    text_TD = encode_text([text_of(e) for e in entities])
    drawn = len(world.depicted)
    draws = [draw(seed, split, n) for n in range(rows)]
    vectors = []
    for start in range(0, rows, 128):
        batch = [
            preprocess(open_image(picture(d, training=split == "training")[0]).convert("RGB"))
            for d in draws[start : start + 128]
        ]
        vectors.append(encode_image(torch.stack(batch)))
    cosine_NT = (torch.cat(vectors) @ text_TD.T).numpy()
    best, right = np.full(rows, -1.0), np.zeros(rows, bool)
    rng = np.random.default_rng(0)
    truth = np.array([place[d.truth.id] for d in draws])
    stranger = (truth + rng.integers(1, drawn, rows)) % drawn
    for i, d in enumerate(draws):
        candidates = sorted(
            {place[q] for surface, _ in d.caption.spans for q in world.bearers.get(surface.casefold(), ())}
        )
        if candidates:
            scores = cosine_NT[i, candidates]
            best[i] = scores.max()
            right[i] = candidates[int(scores.argmax())] == truth[i]
    at_truth = cosine_NT[np.arange(rows), truth]
    return Asked(
        best=best,
        right=right,
        named=np.array([d.truth.id in d.caption.mentioned for d in draws]),
        held_out=np.array([d.style == HELD_OUT_STYLE for d in draws]),
        colliding=np.array([d.caption.colliding for d in draws]),
        truth_rank=(cosine_NT[:, :drawn] > at_truth[:, None]).sum(1),
        truth_cosine=at_truth,
        stranger_cosine=cosine_NT[np.arange(rows), stranger],
    )
