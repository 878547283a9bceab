from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from i2e_pipeline.train.ema import Ema


class Small(nn.Module):
    """A batch norm (buffers that are averaged, and a counter) and a constant outside the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.body(x_BD)


def model(seed: int = 0) -> Small:
    small = Small()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in small.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=draw))
    return small


def trained(small: Small, ema: Ema, steps: int) -> list[Tensor]:
    """Steps of any kind; the first layer's weights after each."""
    draw, course = torch.Generator().manual_seed(5), []
    for step in range(1, steps + 1):
        small.train()(torch.randn(6, 4, generator=draw))
        with torch.no_grad():
            for tensor in small.parameters():
                tensor.add_(torch.randn(tensor.shape, generator=draw))
        ema.update(small, step)
        course.append(small.body[0].weight.detach().clone())
    return course


def test_the_mean_follows_its_recurrence() -> None:
    small = model()
    expected, ema = small.body[0].weight.detach().clone(), Ema(small, 0.7)
    for step, weights in enumerate(trained(small, ema, 30), 1):
        expected += (1 - min(0.7, (1 + step) / (10 + step))) * (weights - expected)
    torch.testing.assert_close(ema.mean["body.0.weight"], expected)


def test_statistics_of_batch_norms_are_averaged_and_constants_are_not() -> None:
    small = model()
    ema = Ema(small, 0.9)
    trained(small, ema, 5)
    assert "body.1.running_var" in ema.mean
    assert not torch.equal(ema.mean["body.1.running_var"], small.body[1].running_var)
    assert not {"mask", "body.1.num_batches_tracked"} & set(ema.mean)
    assert all(torch.isfinite(mean).all() for mean in ema.mean.values())


def test_the_model_is_the_mean_within_the_block_and_itself_after_it() -> None:
    small = model()
    ema = Ema(small, 0.9)
    trained(small, ema, 5)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    mean = {name: tensor.clone() for name, tensor in ema.mean.items()}
    with ema.swapped(small):
        held = small.state_dict()
        assert all(torch.equal(held[name], mean[name]) for name in mean)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    assert all(torch.equal(ema.mean[name], mean[name]) for name in mean)


def test_an_evaluation_that_fails_leaves_the_model_as_it_was() -> None:
    small = model()
    ema = Ema(small, 0.9)
    trained(small, ema, 3)
    before = small.body[0].weight.detach().clone()
    with pytest.raises(ZeroDivisionError), ema.swapped(small):
        _ = 1 / 0
    assert torch.equal(small.body[0].weight, before)


def test_no_update_while_the_model_holds_the_mean() -> None:
    small = model()
    ema = Ema(small, 0.9)
    with ema.swapped(small), pytest.raises(RuntimeError, match="outside of `swapped`"):
        ema.update(small, 1)


def test_a_loaded_mean_goes_on_as_the_one_that_was_saved() -> None:
    small = model()
    ema = Ema(small, 0.9)
    trained(small, ema, 4)
    other = Ema(model(seed=1), 0.9)
    other.load({name: tensor.clone() for name, tensor in ema.mean.items()})
    for each in (ema, other):
        each.update(small, 5)
    assert all(torch.equal(ema.mean[name], other.mean[name]) for name in ema.mean)


def test_a_mean_of_another_model_is_refused() -> None:
    ema = Ema(model(), 0.9)
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the model, first body\.0\.bias"):
        ema.load({name: tensor for name, tensor in ema.mean.items() if name != "body.0.bias"})
    with pytest.raises(ValueError, match=r"body.0.bias has shape \(3,\), the model \(8,\)"):
        ema.load({**ema.mean, "body.0.bias": torch.zeros(3)})


def test_tied_weights_are_swapped_once() -> None:
    """Catches: a tensor under two names, exchanged twice, is back where it was."""
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    tied[0].weight.data.fill_(1)
    ema = Ema(tied, 0.5)
    tied[0].weight.data.fill_(2)
    with ema.swapped(tied):
        assert torch.equal(tied[1].weight, torch.ones(3, 3))
    assert torch.equal(tied[1].weight, torch.full((3, 3), 2.0))


def _under_fsdp(rank: int, folder: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    small = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    with torch.no_grad():
        for number, tensor in enumerate(small.parameters()):
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) / 7 + number)
    reference, x_BD = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.ones(3, 4)
    reference.load_state_dict(small.state_dict())
    fully_shard(small, mesh=init_device_mesh("cpu", (2,)))
    ema, expected = Ema(small, 0.9), Ema(reference, 0.9)
    for step in (1, 2, 3):
        for each, mean in ((small, ema), (reference, expected)):
            optimizer = torch.optim.SGD(each.parameters(), lr=0.01)
            each(x_BD).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            mean.update(each, step)
    own, close = small(x_BD).detach(), {"rtol": 1e-5, "atol": 1e-5}
    with ema.swapped(small), expected.swapped(reference):
        torch.testing.assert_close(small(x_BD), reference(x_BD), **close)
        assert not torch.equal(small(x_BD), own)
    assert torch.equal(small(x_BD), own)
    ema.load({name: torch.full(mean.shape, 3.0) for name, mean in ema.mean.items()})
    with ema.swapped(small):
        torch.testing.assert_close(small(torch.ones(1, 4))[0, 0].item(), 8 * 15.0 * 3 + 3)
    Path(folder, f"well-{rank}").touch()
    dist.destroy_process_group()


@pytest.mark.slow
def test_under_fsdp_the_mean_is_that_of_whole_tensors(tmp_path: Path) -> None:
    """Catches: the swapped weights are not those that FSDP gathers for the forward pass."""
    torch.multiprocessing.start_processes(_under_fsdp, (str(tmp_path),), nprocs=2, start_method="forkserver")
    assert (tmp_path / "well-0").exists()
    assert (tmp_path / "well-1").exists()
