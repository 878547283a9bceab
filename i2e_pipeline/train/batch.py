"""What a step sees: the batch that dataset.py makes, and what the towers make of it.

Legend: B images of this rank, C H W channels and sides, L tokens, K labels of the image with most labels, D width,
T width of the teachers' vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TeacherSpace:
    """A teacher's part of the stored vectors."""

    width: int
    scale: float
    """What its cosines of image and text are multiplied by."""


@dataclass(frozen=True)
class Batch:
    """This rank's part of one micro-batch."""

    pixels_BCHW: Tensor
    """uint8; normalised on the device by the towers."""
    class_B: Tensor
    """int64, the label that was drawn for the image: a class index of the dataset. All of them are ≥ 0."""
    classes_BK: Tensor
    """int64, every label of the image, −1 beyond the last; K is the dataset's (Samples.labels_per_image)."""
    tokens_BL: Tensor | None
    """int64, the text that was drawn for the image; None where the recipe wants no texts."""
    teacher_BT: Tensor | None
    """float32, the stored image vectors, norm 1; zeros where there are none. None where the recipe does not distil."""
    image_ids: tuple[bytes, ...]
    """16 bytes each, in the order of the rows."""
    teacher_text_BT: Tensor | None = None
    """float32, the stored vectors of the text that was drawn, as teacher_BT has those of the augmentation that is seen;
    None where no affinities are distilled."""
    teachers: tuple[TeacherSpace, ...] = ()
    """Whose these vectors are, in the order of their columns; together they are T wide."""

    def __len__(self) -> int:
        return len(self.class_B)


@dataclass(frozen=True)
class Encoded:
    """What the towers make of a batch."""

    image_BD: Tensor
    """float32, norm 1."""
    text_BD: Tensor | None
    """float32, norm 1; None where no tokens were given."""
    scale: Tensor
    """Scalar: what cosines of image and text are multiplied by (exp of the learnt logit scale)."""
    bias: Tensor | None
    """Scalar, SigLIP's; None with InfoNCE."""
    distilled_BT: Tensor | None = None
    """float32, norm 1: image vectors mapped to the teacher's width; None where the recipe does not distil."""
