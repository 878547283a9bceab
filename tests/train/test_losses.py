"""The losses against the textbook: all pairs in one process, written out image by image.

The same cases run on 1, 2 and 4 gloo ranks; what the ranks found, gradients averaged as DDP averages them, goes into
a file, and the tests compare there.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from i2e_pipeline.train import losses
from i2e_pipeline.train.batch import TeacherSpace
from i2e_pipeline.train.parallel import World
from tests.train.no_data import DEVICE, Alike, nothing_is_read
from tests.train.ranks import by_ranks

IMAGES, WIDTH, TEACHER = 8, 6, 5
CASES = (
    "infonce", "infonce, plain", "siglip", "siglip, plain", "distillation", "distillation, none", "affinity",
    "affinity, two", "affinity, none",
)  # fmt: skip
TEACHERS = (TeacherSpace(TEACHER, 3.0), TeacherSpace(2, 20.0))
SIZES = (1, 2, 4)
CLASSES = torch.tensor([[0, -1], [1, 2], [2, -1], [-1, -1], [0, -1], [-1, -1], [4, -1], [0, 5]])
"""Rows 0, 4 and 7 share an entity, rows 1 and 2 too; rows 3 and 5 have none, and share none."""
ALIKE = {(0, 4), (4, 0), (0, 7), (7, 0), (4, 7), (7, 4), (1, 2), (2, 1)}


def weights() -> dict[str, Tensor]:
    """What is trained: a map for images, one for texts, the scale and the bias."""
    draws = torch.Generator().manual_seed(1)
    return {
        "image_map": torch.randn(WIDTH, TEACHER, generator=draws).requires_grad_(),
        "text_map": torch.randn(WIDTH, TEACHER, generator=draws).requires_grad_(),
        "log_scale": torch.tensor(1.5).requires_grad_(),
        "bias": torch.tensor(-2.0).requires_grad_(),
    }


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of images and texts, and a teacher's vectors, some of them missing."""
    draws = torch.Generator().manual_seed(2)
    teacher_BT = normalize(torch.randn(IMAGES, TEACHER, generator=draws))
    teacher_BT[[1, 2, 3, 6]] = 0
    return torch.randn(IMAGES, WIDTH, generator=draws), torch.randn(IMAGES, WIDTH, generator=draws), teacher_BT


def taught(case: str) -> tuple[Tensor, Tensor, tuple[TeacherSpace, ...]]:
    """Vectors of one or two teachers, of images and texts; images 2 and 7 have none, nor has text 5."""
    draws = torch.Generator().manual_seed(3)
    teachers = TEACHERS if case.endswith("two") else TEACHERS[:1]
    width = sum(teacher.width for teacher in teachers)
    images, texts = (torch.randn(IMAGES, width, generator=draws) for _ in range(2))
    images[[2, 7]] = texts[5] = 0
    return images * (not case.endswith("none")), texts, teachers


def ours(case: str, given: dict[str, Tensor], world: World) -> Tensor:
    """This rank's loss by the functions under test."""
    images, texts, teacher_BT = data()
    rows = slice(world.rank * IMAGES // world.size, (world.rank + 1) * IMAGES // world.size)
    image_BD = normalize(images[rows] @ given["image_map"])
    text_BD = normalize(texts[rows] @ given["text_map"])
    classes_BK = CLASSES[rows]
    known = None if case.endswith("plain") else classes_BK
    scale = given["log_scale"].exp()
    if case.startswith("infonce"):
        return losses.info_nce(image_BD, text_BD, scale, known, world)
    if case.startswith("siglip"):
        return losses.siglip(image_BD, text_BD, scale, given["bias"], known, world)
    if case.startswith("affinity"):
        teacher_images, teacher_texts, teachers = taught(case)
        vectors = teacher_images[rows], teacher_texts[rows]
        return losses.affinity(image_BD, text_BD, scale, *vectors, teachers, world)
    return losses.distillation(image_BD, teacher_BT[rows] * (case == "distillation"), world)


def textbook(case: str, given: dict[str, Tensor]) -> Tensor:
    images, texts, teacher_BT = data()
    image_ND, text_ND = normalize(images @ given["image_map"]), normalize(texts @ given["text_map"])
    scale, bias = given["log_scale"].exp(), given["bias"]
    total = torch.zeros(())
    if case.startswith("distillation"):
        there = [i for i in range(IMAGES) if case == "distillation" and teacher_BT[i].any()]
        for i in there:
            total = total + (1 - image_ND[i] @ teacher_BT[i]) / len(there)
        return total + 0 * image_ND.sum()
    if case.startswith("affinity"):
        return affinity_of(case, image_ND, text_ND, scale)
    for i in range(IMAGES):
        others = [j for j in range(IMAGES) if case.endswith("plain") or (i, j) not in ALIKE]
        if case.startswith("infonce"):
            for mine, theirs in ((image_ND, text_ND), (text_ND, image_ND)):
                denominator = sum(torch.exp(scale * mine[i] @ theirs[j]) for j in others)
                total = total - torch.log(torch.exp(scale * mine[i] @ theirs[i]) / denominator) / 2
        else:
            for j in others:
                logit = scale * image_ND[i] @ text_ND[j] + bias
                total = total - torch.log(torch.sigmoid(logit if i == j else -logit))
    return total / IMAGES


def affinity_of(case: str, image_ND: Tensor, text_ND: Tensor, scale: Tensor) -> Tensor:
    """½ mean over teachers and rows of KL, in both directions, written out (arXiv 2311.17049, §3.1)."""
    teacher_images, teacher_texts, teachers = taught(case)
    there = [i for i in range(IMAGES) if teacher_images[i].any() and teacher_texts[i].any()]
    total, start = 0 * (image_ND.sum() + text_ND.sum() + scale), 0
    for teacher in teachers:
        x, y = (normalize(v[:, start : start + teacher.width]) for v in (teacher_images, teacher_texts))
        start += teacher.width
        for mine, theirs, a, b in ((image_ND, text_ND, x, y), (text_ND, image_ND, y, x)):
            for i in there:
                p = torch.stack([torch.exp(teacher.scale * a[i] @ b[j]) for j in there])
                q = torch.stack([torch.exp(scale * mine[i] @ theirs[j]) for j in there])
                p, q = p / p.sum(), q / q.sum()
                total = total + (p * torch.log(p / q)).sum() / (2 * len(teachers) * len(there))
    return total


def found(case: str, world: World) -> dict[str, Tensor]:
    """Loss and gradients, as the mean over ranks."""
    given = weights()
    loss = ours(case, given, world)
    loss.backward()
    result = {"loss": loss.detach()} | {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in given.items()}
    return {name: world.sum(value) / world.size for name, value in result.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    found_by: dict[int, Any] = by_ranks(found, CASES, SIZES, tmp_path_factory.mktemp("ranks"))
    return found_by


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_all_pairs_in_one_process(
    case: str, size: int, results: dict[int, Any]
) -> None:
    """Catches: gradients that are W times too large or too small, or lack what other ranks' rows say."""
    given = weights()
    expected = textbook(case, given)
    expected.backward()
    got = results[size][case]
    assert torch.allclose(got["loss"], expected, atol=1e-5)
    for name, weight in given.items():
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert torch.allclose(got[name], wanted, atol=1e-5), name


@pytest.mark.parametrize("size", [1, 3])
def test_no_loss_waits_for_the_device(size: int) -> None:
    """Catches: a width or a count that ranks agree on by reading it from the device in every step."""
    x, world, scale = (
        torch.ones(IMAGES, WIDTH, device=DEVICE, requires_grad=True),
        Alike(1, size, DEVICE),
        torch.tensor(2.0),
    )
    with nothing_is_read():
        total = losses.info_nce(x, x, scale, CLASSES, world) + losses.siglip(x, x, scale, scale, CLASSES, world)
        total = total + losses.affinity(x, x, scale, x.detach(), x.detach(), (TeacherSpace(WIDTH, 3.0),), world)
        (total + losses.distillation(x, x.detach(), world)).backward()


def test_a_student_with_the_teachers_similarities_has_no_affinity_loss() -> None:
    """Catches: a loss that keeps the teachers' entropies, of which nobody can tell whether it has come to its end."""
    images, texts, _ = taught("affinity")
    images, texts = normalize(images), normalize(texts)
    turn = torch.linalg.qr(torch.randn(TEACHER, TEACHER, generator=torch.Generator().manual_seed(4)))[0]
    alike = losses.affinity(images @ turn, texts @ turn, torch.tensor(3.0), images, texts, TEACHERS[:1])
    colder = losses.affinity(images @ turn, texts @ turn, torch.tensor(4.0), images, texts, TEACHERS[:1])
    assert abs(float(alike)) < 1e-6
    assert float(colder) > 1e-3


def test_equal_entities_do_not_push_each_other_away() -> None:
    """Catches: two images of one entity, each other's negatives, although one text is right for both."""
    image_BD = normalize(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0)))
    text_BD = image_BD[[0, 0]].clone().requires_grad_()
    same, other = torch.tensor([[7], [7]]), torch.tensor([[7], [8]])
    scale = torch.tensor(10.0)
    assert float(losses.info_nce(image_BD, text_BD, scale, same).detach()) == 0
    assert float(losses.info_nce(image_BD, text_BD, scale, other).detach()) > 0.1
    bias = torch.tensor(0.0)
    losses.siglip(image_BD, text_BD, scale, bias, same).backward()
    pulled = (text_BD.grad * image_BD).sum(1)
    assert (pulled < 0).all()  # towards their own images only


def test_a_row_without_labels_has_all_others_as_negatives() -> None:
    classes_BK = torch.tensor([[-1, -1], [-1, -1], [3, -1]])
    assert losses.alike(classes_BK).tolist() == [[False] * 3, [False] * 3, [False, False, True]]


def test_any_shared_label_counts() -> None:
    classes_BK = torch.tensor([[1, 2, -1], [2, 3, 4], [4, -1, -1]])
    assert losses.alike(classes_BK).tolist() == [[True, True, False], [True, True, True], [False, True, True]]


def test_logits_are_float32_under_autocast() -> None:
    """Catches: bfloat16 logits at scale 100, rounded to a half."""
    image_BD, text_BD, scale = normalize(torch.randn(4, 64)), normalize(torch.randn(4, 64)), torch.tensor(100.0)
    outside = losses.info_nce(image_BD, text_BD, scale)
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.info_nce(image_BD, text_BD, scale)
        sigmoid = losses.siglip(image_BD, text_BD, scale, torch.tensor(-10.0))
    assert torch.equal(inside, outside)
    assert torch.equal(sigmoid, losses.siglip(image_BD, text_BD, scale, torch.tensor(-10.0)))


def test_a_batch_of_one_image_has_no_negatives() -> None:
    x = normalize(torch.randn(1, WIDTH))
    assert float(losses.info_nce(x, -x, torch.tensor(5.0), torch.tensor([[1]]))) == 0
    assert math.isfinite(float(losses.siglip(x, -x, torch.tensor(5.0), torch.tensor(-10.0), torch.tensor([[1]]))))
