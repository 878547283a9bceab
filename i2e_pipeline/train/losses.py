"""Losses between images and texts, and between both and teachers' vectors.

Each returns this rank's part such that the mean over ranks is the loss of the global batch. DDP averages gradients
over ranks, and `World.gather` hands each row the gradient of the *sum* of all ranks' losses, so what reaches a
parameter is (1/W) Σ_r ∂(Σ_s L_s)/∂x_r · ∂x_r/∂θ = ∂(mean_s L_s)/∂θ: the gradient of the global mean, whatever W is.

All is computed in float32, also under autocast: a bfloat16 logit of 100 · cosine is off by up to a quarter.

Legend: B images of this rank, N = W · B of all ranks, D width, K labels of the image with most labels, T width of
the teachers' vectors, U twice that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from i2e_pipeline.train.batch import TeacherSpace
from i2e_pipeline.train.parallel import World

_ALONE = World()
_NEVER = -1e5
"""A logit below all others by far: cosines times scales are at most some hundreds."""


def info_nce(
    image_BD: Tensor, text_BD: Tensor, scale: Tensor, classes_BK: Tensor | None = None, world: World = _ALONE
) -> Tensor:
    """Symmetric InfoNCE: the mean of cross-entropies image → texts and text → images (CLIP, arXiv 2103.00020, Fig. 3;
    van den Oord et al., arXiv 1807.03748, Eq. 4).

        ½ mean_i [ −log e(x_i·y_i) / Σ_{j ∈ J(i)} e(x_i·y_j) − log e(x_i·y_i) / Σ_{j ∈ J(i)} e(x_j·y_i) ]

    e(z) = exp(s z)     with the learnt scale s
    image_BD, text_BD   x and y, unit vectors; row i of both belongs together
    classes_BK          labels, −1 beyond the last: J(i) is i and the rows that share no label with it. None: all rows

    Rows of equal entities are left out of the denominator rather than made further targets (UniCL, arXiv 2204.03610;
    SupCon, arXiv 2004.11362): the text drawn for another image of the entity may be its alt-text, which often names
    something else that is in that image only. It is not wrong for this image, and not right either.
    """
    with torch.autocast(image_BD.device.type, enabled=False):
        image_BD, text_BD, scale = image_BD.float(), text_BD.float(), scale.float()
        image_ND, text_ND = _gather_both(image_BD, text_BD, world)
        to_text_BN = scale * image_BD @ text_ND.T
        to_image_BN = to_text_BN.T if world.size == 1 else scale * text_BD @ image_ND.T
        own_B = _own(len(image_BD), world)
        if classes_BK is not None:
            alike_BN = alike(classes_BK, world)
            alike_BN.scatter_(1, own_B[:, None], False)
            to_text_BN = to_text_BN.masked_fill(alike_BN, -torch.inf)
            to_image_BN = to_image_BN.masked_fill(alike_BN, -torch.inf)
        return (cross_entropy(to_text_BN, own_B) + cross_entropy(to_image_BN, own_B)) / 2


def siglip(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor,
    bias: Tensor,
    classes_BK: Tensor | None = None,
    world: World = _ALONE,
) -> Tensor:
    """Sigmoid loss over all pairs (SigLIP, arXiv 2303.15343, §3.2), with pairs of equal entities left out as in
    `info_nce`:

        −(1/N) Σ_i Σ_j log σ(z_ij (s x_i·y_j + b)),   z_ij = 1 where i = j, else −1

    The sum over j is not divided: the loss grows with the batch, as the paper's does.
    """
    with torch.autocast(image_BD.device.type, enabled=False):
        image_BD, text_BD, scale, bias = image_BD.float(), text_BD.float(), scale.float(), bias.float()
        logits_BN = scale * image_BD @ world.gather(text_BD).T + bias
        own_B1 = _own(len(image_BD), world)[:, None]
        sign_BN = torch.full_like(logits_BN, -1).scatter_(1, own_B1, 1.0)
        terms_BN = logsigmoid(sign_BN * logits_BN)
        if classes_BK is not None:
            terms_BN = terms_BN.masked_fill(alike(classes_BK, world).scatter_(1, own_B1, False), 0)
        return -terms_BN.sum() / len(image_BD)


def distillation(distilled_BT: Tensor, teacher_BT: Tensor, world: World = _ALONE) -> Tensor:
    """Mean of 1 − cosine to the stored image vectors, over the images of all ranks that have one.

    distilled_BT   unit vectors of the image tower in the teacher's space
    teacher_BT     unit vectors; rows of zeros, which stand for "none", are left out

    Half the squared distance of unit vectors, as in feature distillation for CLIP (CLIP-KD, arXiv 2307.12732).
    """
    with torch.autocast(distilled_BT.device.type, enabled=False):
        there_B = teacher_BT.abs().sum(dim=1) > 0
        total = ((1 - (distilled_BT.float() * teacher_BT.float()).sum(dim=1)) * there_B).sum()
        count = world.sum(there_B.sum())
        # Ranks may have unequally many: divided by the global mean per rank, so that the mean over ranks is right.
        return total * world.size / count.clamp(min=1)


def affinity(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor,
    teacher_image_BT: Tensor,
    teacher_text_BT: Tensor,
    teachers: Sequence[TeacherSpace],
    world: World = _ALONE,
) -> Tensor:
    """How far the similarities of images and texts are from the teachers' (L_Distill of MobileCLIP, arXiv 2311.17049,
    §3.1):

        ½ mean_k [ KL(softmax(s_k X_k Y_kᵀ) ‖ softmax(s X Yᵀ)) + KL(softmax(s_k Y_k X_kᵀ) ‖ softmax(s Y Xᵀ)) ]

    a mean over teachers k and rows; a row of the one softmax is an image against all texts, of the other a text against
    all images, of all ranks.

    image_BD, text_BD     X and Y, unit vectors; s the learnt scale
    teacher_…_BT          X_k and Y_k, the teachers' columns side by side. A row of zeros stands for "none": it is no
                          row and no column of any matrix
    The authors' code leaves out the teachers' entropies, which have no gradient; here a student that agrees has 0.
    """
    with torch.autocast(image_BD.device.type, enabled=False):
        image_BD, text_BD, scale = image_BD.float(), text_BD.float(), scale.float()
        image_ND, text_ND = _gather_both(image_BD, text_BD, world)
        there_B = (teacher_image_BT != 0).any(dim=1) & (teacher_text_BT != 0).any(dim=1)
        there_N = world.gather_fixed(there_B.to(torch.uint8)) > 0
        teacher_BU = torch.cat([teacher_image_BT, teacher_text_BT], dim=1).float()
        teacher_NU = world.gather_fixed(teacher_BU)
        to_text_BN = _log_softmax(scale * image_BD @ text_ND.T, there_N)
        to_image_BN = _log_softmax(scale * text_BD @ image_ND.T, there_N)
        total = to_text_BN.new_zeros(())
        start, all_columns = 0, teacher_image_BT.shape[1]
        for teacher in teachers:
            images, texts = (slice(start + of, start + of + teacher.width) for of in (0, all_columns))
            x_BT, y_BT = (normalize(teacher_BU[:, part], dim=1) for part in (images, texts))
            x_NT, y_NT = (normalize(teacher_NU[:, part], dim=1) for part in (images, texts))
            for student_BN, rows_BT, columns_NT in ((to_text_BN, x_BT, y_NT), (to_image_BN, y_BT, x_NT)):
                wanted_BN = _log_softmax(teacher.scale * rows_BT @ columns_NT.T, there_N)
                divergence_B = (wanted_BN.exp() * (wanted_BN - student_BN)).sum(dim=1)
                total = total + (divergence_B * there_B).sum() / (2 * len(teachers))
            start += teacher.width
        count = world.sum(there_B.sum())
        return total * world.size / count.clamp(min=1)


def _log_softmax(logits_BN: Tensor, there_N: Tensor) -> Tensor:
    """Over the columns that are there. The others have a probability of 0 and a logarithm that is finite, so that their
    product is 0 and no NaN."""
    return logits_BN.masked_fill(~there_N, _NEVER).log_softmax(dim=1)


def alike(classes_BK: Tensor, world: World = _ALONE) -> Tensor:
    """Which rows of all ranks share a label with each of this rank's rows: bool (B, N), on the rank's device.

    classes_BK   on the host or the device; K is the same on all ranks
    """
    classes_BK = world.on_device(classes_BK)
    labels_NK = world.gather_fixed(classes_BK)
    unlabelled_BK = classes_BK.masked_fill(classes_BK < 0, -2)  # −1 of one row is not the same as −1 of another
    alike_BN = torch.zeros((len(classes_BK), len(labels_NK)), dtype=torch.bool, device=classes_BK.device)
    for mine_B in unlabelled_BK.unbind(1):
        for theirs_N in labels_NK.unbind(1):
            alike_BN |= mine_B[:, None] == theirs_N[None, :]
    return alike_BN


def _gather_both(image_BD: Tensor, text_BD: Tensor, world: World) -> tuple[Tensor, Tensor]:
    """Rows of all ranks, in one exchange."""
    if world.size == 1:
        return image_BD, text_BD
    image_ND, text_ND = world.gather(torch.cat([image_BD, text_BD], dim=1)).split(image_BD.shape[1], dim=1)
    return image_ND, text_ND


def _own(rows: int, world: World) -> Tensor:
    """Where this rank's rows stand among those of all ranks."""
    return torch.arange(rows, device=world.device) + world.rank * rows
