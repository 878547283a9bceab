"""The entity head against the textbook: one full matrix of class vectors, autograd, the same classes left out.

The same cases run on 1 to 4 gloo ranks; what a rank found goes into a file, and the tests compare there.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from i2e_pipeline.core.config import HeadConfig
from i2e_pipeline.train import entity_head
from i2e_pipeline.train.class_sampling import normal_rows, sample_size, window
from i2e_pipeline.train.entity_head import EntityHead, HeadError
from i2e_pipeline.train.parallel import World
from tests.train.no_data import DEVICE, Alike, nothing_is_read

CLASSES, WIDTH, IMAGES, SEED, RATE = 37, 8, 12, 5, 0.02

CASES: dict[str, dict[str, Any]] = {
    "full": {"sample": 1.0},
    "full, all labels": {"sample": 1.0, "multi_label": "all"},
    "sampled": {"sample": 0.3},
    "sampled, corrected": {"sample": 0.3, "correct_sampling": True},
    "sampled, all labels, corrected": {"sample": 0.3, "correct_sampling": True, "multi_label": "all"},
    "close ones dropped": {"sample": 0.6, "drop_closer_than": 0.3},
    "close ones dropped, all labels": {"sample": 1.0, "drop_closer_than": 0.3, "multi_label": "all"},
    "three classes": {"sample": 1.0, "classes": 3},
    "more ranks than classes": {"sample": 1.0, "classes": 2},
    "accumulated": {"sample": 0.3, "parts": 3},
    "accumulated, all labels": {"sample": 0.3, "parts": 3, "multi_label": "all"},
    "cold": {"sample": 0.3, "temperature": 0.005, "margin": 0.4},
    "one class only": {"sample": 0.2, "right": 4},
    "in slices": {"sample": 0.3, "correct_sampling": True, "multi_label": "all", "logits": 40},
    "in slices, close ones dropped": {"sample": 0.3, "drop_closer_than": 0.2, "logits": 40},
}
"""Settings of the head; `classes`, `parts` of an accumulated step, the one `right` class and the number of `logits` of
a slice are the case's own."""

SIZES = (1, 2, 3, 4)


def config_of(case: dict[str, Any]) -> HeadConfig:
    settings = {name: value for name, value in case.items() if name in HeadConfig.model_fields}
    return HeadConfig(**{"sample_min": 1, **settings})


def batch_of(case: dict[str, Any], step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of all ranks, of norm 1, the class drawn for each, and all its classes with −1 beyond the last."""
    draws = torch.Generator().manual_seed(1000 + step)
    classes = case.get("classes", CLASSES)
    image_BD = functional.normalize(torch.randn(IMAGES, WIDTH, generator=draws))
    class_B = torch.randint(classes, (IMAGES,), generator=draws)
    class_B[3] = class_B[0]
    others_BK = torch.randint(-1, classes, (IMAGES, 2), generator=draws)
    if "right" in case:
        class_B[:], others_BK[:] = case["right"], -1
    return image_BD, class_B, torch.cat([others_BK[:, :1], class_B[:, None], others_BK[:, 1:]], dim=1)


def dense(case: dict[str, Any], rows_ND: Tensor, image_BD: Tensor, class_B: Tensor, classes_BK: Tensor, step: int,
          config: HeadConfig) -> Tensor:  # fmt: skip
    """The loss as one would write it for one process: every image against every class, those left out at −∞."""
    classes = len(rows_ND)
    unit_ND = functional.normalize(rows_ND)
    cosine_BN = image_BD @ unit_ND.T
    right_BN = torch.zeros(len(image_BD), classes)
    for image, (drawn, labels) in enumerate(zip(class_B.tolist(), classes_BK.tolist(), strict=True)):
        all_of_them = {drawn} | {label for label in labels if label >= 0}
        right_BN[image, [drawn] if config.multi_label == "one" else list(all_of_them)] = 1
    positive_N = right_BN.sum(0) > 0
    compared_N = positive_N.clone()
    drawn_window = window(step, classes, sample_size(classes, config.sample, config.sample_min), SEED)
    compared_N[drawn_window.classes_of()] = True
    logit_BN = (cosine_BN - config.margin * right_BN) / config.temperature
    n, positives, compared = classes, int(positive_N.sum()), int(compared_N.sum())
    if config.correct_sampling and compared > positives:
        share = (compared / n * n - positives) / (n - positives)
        logit_BN = torch.where(positive_N, logit_BN, logit_BN - torch.tensor(share).log())
    left_out_BN = ~compared_N.expand(len(image_BD), -1)
    for image, labels in enumerate(classes_BK.tolist()):
        left_out_BN = left_out_BN.clone()
        left_out_BN[image, [label for label in labels if label >= 0]] = True
        if config.drop_closer_than is not None:
            own_RD = unit_ND[right_BN[image] > 0]
            left_out_BN[image] |= (own_RD @ unit_ND.T > config.drop_closer_than).any(0)
    left_out_BN[right_BN > 0] = False
    log_BN = logit_BN.masked_fill(left_out_BN, -torch.inf).log_softmax(1)
    return -(right_BN / right_BN.sum(1, keepdim=True) * log_BN.masked_fill(left_out_BN, 0)).sum(1).mean()


def reference(case: dict[str, Any]) -> dict[str, Tensor]:
    """Two steps of the dense loss and of row-wise Adagrad written down as its formula."""
    config, classes, parts = config_of(case), case.get("classes", CLASSES), case.get("parts", 1)
    rows_ND = normal_rows(torch.arange(classes), WIDTH, SEED) * entity_head.DEVIATION
    accumulator_N = torch.zeros(classes)
    losses, image_gradients = [], []
    for step in range(2):
        rows_ND = rows_ND.detach().requires_grad_()
        touched_N = torch.zeros(classes, dtype=torch.bool)
        for part in range(parts):
            image_BD, class_B, classes_BK = batch_of(case, step * parts + part)
            image_BD.requires_grad_()
            loss = dense(case, rows_ND, image_BD, class_B, classes_BK, step, config)
            (loss / parts).backward()
            losses.append(loss.detach())
            image_gradients.append(image_BD.grad)
        gradient_ND = rows_ND.grad
        assert gradient_ND is not None
        touched_N = gradient_ND.abs().sum(1) > 0
        accumulator_N = accumulator_N + gradient_ND.square().mean(1)
        moved_ND = rows_ND.detach() - RATE * gradient_ND / (accumulator_N.sqrt() + 1e-10)[:, None]
        rows_ND = torch.where(touched_N[:, None], moved_ND, rows_ND.detach())
    return {
        "losses": torch.stack(losses),
        "image_gradients": torch.stack(image_gradients),  # type: ignore[arg-type]
        "rows": rows_ND,
        "accumulators": accumulator_N,
    }


def run_case(case: dict[str, Any], world: World) -> dict[str, Tensor]:
    """The same two steps by the head, on this rank's part of each batch; rows in blocks of five."""
    with mock.patch.multiple(entity_head, LOGITS=case.get("logits", 1 << 26), BLOCK=5 * WIDTH):
        return two_steps(case, world)


def two_steps(case: dict[str, Any], world: World) -> dict[str, Tensor]:
    parts = case.get("parts", 1)
    head = EntityHead(case.get("classes", CLASSES), WIDTH, config_of(case), world, SEED)
    share = slice(world.rank * IMAGES // world.size, (world.rank + 1) * IMAGES // world.size)
    losses, image_gradients = [], []
    for step in range(2):
        for part in range(parts):
            image_BD, class_B, classes_BK = (x[share] for x in batch_of(case, step * parts + part))
            image_BD = image_BD.clone().requires_grad_()
            loss = head.loss(image_BD, class_B, classes_BK, step)
            (loss / parts).backward()
            losses.append(loss.detach())
            assert image_BD.grad is not None
            image_gradients.append(world.gather_fixed(image_BD.grad))
        head.step(RATE)
    indices, rows, accumulators = head.shard()
    return {
        "losses": torch.stack(losses),
        "image_gradients": torch.stack(image_gradients),
        "indices": indices,
        "rows": rows,
        "accumulators": accumulators,
    }


MARGIN_SCALE = 0.2, 30.0
"""CosFace's m and s."""
SHARES = (1.0, 0.3)
"""Of the classes, that a step compares with."""


def partial_fc(share: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the images and of all class vectors, as Partial FC (arXiv 2203.15565) with CosFace is written
    for one process: the rows of the step's classes alone, labels counted along them, a plain cross-entropy."""
    rows_ND = (normal_rows(torch.arange(CLASSES), WIDTH, SEED) * entity_head.DEVIATION).requires_grad_()
    image_BD, class_B, _ = batch_of({}, step)
    image_BD.requires_grad_()
    sampled = window(step, CLASSES, sample_size(CLASSES, share, 1), SEED).classes_of()
    index_S = torch.cat([class_B, sampled]).unique()
    label_B = torch.searchsorted(index_S, class_B)
    margin, scale = MARGIN_SCALE
    cosine_BS = functional.linear(functional.normalize(image_BD), functional.normalize(rows_ND[index_S]))
    logit_BS = scale * (cosine_BS - margin * functional.one_hot(label_B, len(index_S)))
    loss = functional.cross_entropy(logit_BS, label_B)
    loss.backward()
    assert image_BD.grad is not None
    assert rows_ND.grad is not None
    return loss.detach(), image_BD.grad, rows_ND.grad


def one_step(share: float, step: int, world: World) -> dict[str, Tensor]:
    """The same by the head: the loss, and gradients as they come."""
    margin, scale = MARGIN_SCALE
    config = HeadConfig(sample=share, sample_min=1, margin=margin, temperature=1 / scale)
    head = EntityHead(CLASSES, WIDTH, config, world, SEED)
    own = slice(world.rank * IMAGES // world.size, (world.rank + 1) * IMAGES // world.size)
    image_BD, class_B, _ = (x[own] for x in batch_of({}, step))
    raw_BD = image_BD.clone().requires_grad_()
    with mock.patch.object(EntityHead, "keep") as kept:
        loss = head.loss(functional.normalize(raw_BD), class_B, class_B[:, None], step)
        loss.backward()
    gradients = kept.call_args.args[0]
    rows_ND = torch.zeros(CLASSES, WIDTH)
    row_S = torch.cat([gradients.row_M, gradients.row_E])
    rows_ND[head.shard()[0][row_S]] = gradients.row_SD
    assert raw_BD.grad is not None
    return {
        "loss": loss.detach(),
        "images": world.gather_fixed(raw_BD.grad) / world.size,  # as DDP divides
        "rows": world.sum(rows_ND),
    }


def rank_main(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    world = World(rank, size)
    found: dict[str, Any] = {name: run_case(case, world) for name, case in CASES.items()}
    found["partial_fc"] = one_steps(world)
    torch.save(found, f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


def one_steps(world: World) -> dict[tuple[float, int], dict[str, Tensor]]:
    return {(share, step): one_step(share, step, world) for share in SHARES for step in range(3)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By number of ranks: what each rank found for each case."""
    alone: dict[str, Any] = {name: run_case(case, World()) for name, case in CASES.items()}
    found: dict[int, list[dict[str, Any]]] = {1: [alone | {"partial_fc": one_steps(World())}]}
    for size in SIZES[1:]:
        folder = str(tmp_path_factory.mktemp(f"ranks-{size}"))
        torch.multiprocessing.start_processes(rank_main, (size, folder), nprocs=size, start_method="fork")
        found[size] = [torch.load(f"{folder}/rank-{rank}.pt") for rank in range(size)]
    return found


def whole(parts: list[dict[str, Tensor]], name: str) -> Tensor:
    """The rows of all ranks in the order of class indices."""
    return torch.cat([part[name] for part in parts])[torch.cat([part["indices"] for part in parts]).argsort()]


@pytest.mark.parametrize(("name", "size"), itertools.product(CASES, SIZES))
def test_loss_gradients_and_updates_equal_the_dense_ones(results: Any, name: str, size: int) -> None:
    expected, parts = reference(CASES[name]), [rank[name] for rank in results[size]]
    for part in parts:
        torch.testing.assert_close(part["losses"], expected["losses"], rtol=1e-5, atol=1e-5)
        # DDP divides by the number of ranks what the head has multiplied by it.
        torch.testing.assert_close(part["image_gradients"] / size, expected["image_gradients"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole(parts, "rows"), expected["rows"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole(parts, "accumulators"), expected["accumulators"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("share", "size"), itertools.product(SHARES, SIZES))
def test_one_step_is_partial_fcs_cross_entropy_over_the_sampled_rows(results: Any, share: float, size: int) -> None:
    """Catches: a scale or margin in another place, a class that is compared with twice, a gradient that is a number of
    ranks too large; within 2e-6 of the whole tensor's norm."""
    for step in range(3):
        expected = dict(zip(("loss", "images", "rows"), partial_fc(share, step), strict=True))
        for rank in results[size]:
            for name, wanted in expected.items():
                got = rank["partial_fc"][share, step][name]
                assert (got - wanted).norm() <= 2e-6 * wanted.norm(), name


def head_of(rank: int = 0, size: int = 1, classes: int = CLASSES, **settings: Any) -> EntityHead:
    return EntityHead(classes, WIDTH, HeadConfig(**{"sample_min": 1, **settings}), World(rank, size), SEED)


def train_one_step(head: EntityHead, step: int = 0) -> Tensor:
    image_BD, class_B, classes_BK = batch_of({"classes": min(head.classes, CLASSES)}, step)
    loss = head.loss(image_BD, class_B, classes_BK, step)
    loss.backward()
    head.step(RATE)
    return loss.detach()


@pytest.mark.parametrize("size", [2, 3, 64])
def test_first_rows_do_not_depend_on_the_number_of_ranks(size: int) -> None:
    alone = head_of()
    for rank in range(size):
        indices, rows, _ = head_of(rank, size).shard()
        assert torch.equal(rows, alone.weights_RD[indices])


@pytest.mark.parametrize("size", [1, 3])
def test_a_checkpoint_of_two_ranks_loads_on_another_number(size: int) -> None:
    saved = [head_of(rank, 2) for rank in range(2)]
    for number, head in enumerate(saved):
        head.weights_RD += 1 + number
        head.accumulators_R += torch.arange(len(head.accumulators_R)) + 0.5
    rows = torch.cat([head.weights_RD for head in saved])
    accumulators = torch.cat([head.accumulators_R for head in saved])
    order = torch.cat([head.shard()[0] for head in saved]).argsort()
    for rank in range(size):
        head = head_of(rank, size)
        for other in saved:
            head.load(*other.shard())
        indices = head.shard()[0]
        assert torch.equal(head.weights_RD, rows[order][indices])
        assert torch.equal(head.accumulators_R, accumulators[order][indices])


def test_new_classes_join_with_first_rows_and_old_ones_keep_theirs() -> None:
    old, grown = head_of(classes=20), head_of(classes=CLASSES)
    train_one_step(old)
    grown.load(*old.shard())
    assert torch.equal(grown.weights_RD[:20], old.weights_RD)
    assert torch.equal(grown.weights_RD[20:], head_of().weights_RD[20:])
    assert not grown.accumulators_R[20:].any()
    assert torch.isfinite(train_one_step(grown))


def test_a_resumed_head_continues_as_the_one_that_never_stopped() -> None:
    through, stopped = head_of(sample=0.3), head_of(sample=0.3)
    train_one_step(through)
    train_one_step(stopped)
    resumed = head_of(sample=0.3)
    resumed.load(*stopped.shard())
    assert torch.equal(train_one_step(through, 1), train_one_step(resumed, 1))
    assert torch.equal(through.weights_RD, resumed.weights_RD)


def test_a_checkpoint_with_more_classes_is_refused_with_both_numbers() -> None:
    with pytest.raises(HeadError, match=r"class index 36, and the head has 20 classes.*continues its class"):
        head_of(classes=20).load(*head_of().shard())


def test_a_checkpoint_of_another_width_is_refused() -> None:
    with pytest.raises(HeadError, match=r"\(2, 5\).*8 wide"):
        head_of().load(torch.arange(2), torch.zeros(2, 5), torch.zeros(2))


@pytest.mark.parametrize(("drawn", "others"), [(CLASSES, -1), (0, CLASSES), (-1, 3)])
def test_a_class_index_that_the_head_has_not_is_refused(drawn: int, others: int) -> None:
    """Catches: an index beyond the last is folded back by the window's modulus and trains a wrong class."""
    with pytest.raises(HeadError, match=rf"class index (-1|{CLASSES}) .*{CLASSES} classes"):
        head_of(sample=0.3).loss(torch.ones(1, WIDTH), torch.tensor([drawn]), torch.tensor([[others]]), 0)


def test_rows_that_no_image_was_compared_with_stay() -> None:
    head = head_of(sample=0.3)
    before = head.weights_RD.clone()
    train_one_step(head)
    _, class_B, _ = batch_of({}, 0)
    compared = torch.zeros(CLASSES, dtype=torch.bool)
    compared[window(0, CLASSES, sample_size(CLASSES, 0.3, 1), SEED).classes_of()] = True
    compared[class_B] = True
    assert 0 < int(compared.sum()) < CLASSES
    assert torch.equal((head.weights_RD != before).any(1), compared)
    assert torch.equal(head.accumulators_R > 0, compared)


def test_corrected_samples_estimate_the_loss_over_all_classes() -> None:
    """Catches: −log r′ with the wrong sign, or on the positives; without it, the loss is far too low."""
    classes = 4096
    image_BD, class_B, classes_BK = batch_of({"classes": classes}, 0)

    def mean_loss(**settings: Any) -> float:
        head = head_of(classes=classes, temperature=0.2, **settings)
        with torch.no_grad():
            return torch.stack([head.loss(image_BD, class_B, classes_BK, step) for step in range(16)]).mean().item()

    exact = mean_loss(sample=1.0)
    assert abs(mean_loss(sample=1 / 16, correct_sampling=True) - exact) < 0.05
    assert exact - mean_loss(sample=1 / 16) > 1


def test_a_loss_without_backward_leaves_nothing() -> None:
    head = head_of()
    before = head.weights_RD.clone()
    image_BD, class_B, classes_BK = batch_of({}, 0)
    with torch.no_grad():
        assert not head.loss(image_BD, class_B, classes_BK, 0).requires_grad
    head.step(RATE)
    assert torch.equal(head.weights_RD, before)


def test_the_head_learns_while_the_towers_are_frozen() -> None:
    head = head_of(sample=1.0)
    first = train_one_step(head)
    for _ in range(20):
        last = train_one_step(head)
    assert last < first / 2


def test_gradients_of_two_steps_are_not_mixed() -> None:
    head = head_of(sample=0.3)
    image_BD, class_B, classes_BK = batch_of({}, 0)
    head.loss(image_BD, class_B, classes_BK, 0).backward()
    with pytest.raises(RuntimeError, match=r"step 0 wait, and this is step 1"):
        head.loss(image_BD, class_B, classes_BK, 1)
    head.step(RATE)
    head.loss(image_BD, class_B, classes_BK, 1).backward()


def test_autocast_of_the_towers_does_not_reach_the_head() -> None:
    """Catches: logits of 30 in bfloat16 are off by 1/8, and so are the probabilities."""
    image_BD, class_B, classes_BK = batch_of({}, 0)
    expected = head_of().loss(image_BD, class_B, classes_BK, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head_of().loss(image_BD, class_B, classes_BK, 0), expected)


def test_bfloat16_rows_follow_float32_ones() -> None:
    exact, rounded = head_of(sample=0.3), head_of(sample=0.3, dtype="bfloat16")
    assert rounded.weights_RD.dtype == torch.bfloat16
    for step in range(10):
        loss = train_one_step(exact, step)
        torch.testing.assert_close(train_one_step(rounded, step), loss, rtol=0.03, atol=0.03)
    torch.testing.assert_close(rounded.weights_RD.float(), exact.weights_RD, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_nothing_from_the_device(monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    """Catches: int(tensor.min()), a mask as index, torch.unique, a shape that depends on what a tensor holds."""
    case = CASES[name]
    monkeypatch.setattr(entity_head, "LOGITS", case.get("logits", 1 << 26))
    head = EntityHead(case.get("classes", CLASSES), WIDTH, config_of(case), Alike(0, size, DEVICE), SEED)
    with nothing_is_read():
        for step in range(2):
            for part in range(case.get("parts", 1)):
                image_BD, class_B, classes_BK = batch_of(case, step * 3 + part)
                head.loss(image_BD.to(DEVICE).requires_grad_(), class_B, classes_BK, step).backward()
            head.step(RATE, unless=torch.zeros((), dtype=torch.bool, device=DEVICE))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_bad_step_leaves_rows_and_accumulators_bit_for_bit(parts: int, dtype: str) -> None:
    """Catches: 0 · NaN, and rows outside the window that are written without the guard."""
    head = head_of(sample=0.3, dtype=dtype)
    train_one_step(head)
    before = [x.clone() for x in head.shard()]
    for _ in range(parts):
        image_BD, class_B, classes_BK = batch_of({}, 1)
        (head.loss(image_BD, class_B, classes_BK, 1) * float("nan")).backward()
    head.step(RATE, unless=torch.tensor(True))
    assert all(map(torch.equal, before, head.shard()))
    assert torch.isfinite(train_one_step(head, 2))
    image_BD, class_B, classes_BK = batch_of({}, 3)
    head.loss(image_BD, class_B, classes_BK, 3).backward()
    head.step(RATE, unless=torch.tensor(False))
    assert not torch.equal(before[1], head.weights_RD)


MEASURED = """
import torch
from i2e_pipeline.core.config import HeadConfig
from i2e_pipeline.train.entity_head import EntityHead
from i2e_pipeline.train.parallel import World

def megabytes(what):
    return int(open("/proc/self/status").read().partition(what + ":")[2].split()[0]) / 1024

def from_here():
    open("/proc/self/clear_refs", "w").write("5")  # VmHWM, the peak, begins anew
    return megabytes("VmRSS")

def train(head, steps):
    for step in range(steps):
        image = torch.nn.functional.normalize(torch.randn(32, 64)).requires_grad_()
        drawn = torch.randint(head.classes, (32,))
        head.loss(image, drawn, drawn[:, None], step).backward()
        head.step(0.1)

torch.set_num_threads(1)
config = HeadConfig(sample=0.02, sample_min=1)
train(EntityHead(1000, 64, config, World(), 0), 1)
before = from_here()
head = EntityHead(200_000, 64, config, World(), 0)
print(megabytes("VmHWM") - before)
before = from_here()
train(head, 3)
print(megabytes("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_nothing_as_large_as_the_shard_is_made_beside_it() -> None:
    """Catches: a dense gradient, as indexing a Parameter makes it. Measured as the peak of a fresh process."""
    found = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    built, trained = map(float, found.stdout.split())
    weights = 200_000 * 64 * 4 / 2**20
    assert 0.9 * weights < built < weights + 24  # the last for blocks that do not grow with the shard
    assert trained < weights / 3
