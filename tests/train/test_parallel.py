"""Who takes part in a training, and on which device."""

from __future__ import annotations

import pytest
import torch

from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import ConfigError
from i2e_pipeline.core.machine import DeviceError
from i2e_pipeline.train.parallel import WorldError, _place
from i2e_pipeline.train.slurm import first_of, tasks_of, variables

STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "10", "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2),2",
    "SLURM_STEP_NODELIST": "gpu[007-008,12]",
}  # fmt: skip


def test_a_task_of_srun_is_a_rank() -> None:
    found = variables(STEP)
    port = int(found.pop("MASTER_PORT"))
    assert found == {
        "RANK": "9", "WORLD_SIZE": "10", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "gpu007",
    }  # fmt: skip
    assert 1024 < port < 32768
    assert variables(STEP | {"SLURM_STEP_ID": "3"})["MASTER_PORT"] != str(port)
    assert variables(STEP | {"SLURM_PROCID": "0"})["MASTER_PORT"] == str(port)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "10", "SLURM_PROCID": "0"},  # the batch script itself
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"RANK": "3", "WORLD_SIZE": "8"},  # torchrun under srun, one on each node
    ],
)
def test_what_is_no_task_of_several_or_has_its_rank_is_left_alone(environment: dict[str, str]) -> None:
    """Catches: a batch script's own `i2e train` that waits for ranks that nobody starts."""
    assert variables(environment) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("localhost", "localhost"),
        ("a100-03,b7", "a100-03"),
        ("gpu[003-005,9]-ib,login", "gpu003-ib"),
        ("r[1-2]n[07,09]", "r1n07"),
        ("n[12]", "n12"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_of(nodes) == first


def test_tasks_of_each_node() -> None:
    assert tasks_of("8(x3),2,1(x2)") == [8, 8, 8, 2, 1, 1]


def places(seen: list[tuple[str, tuple[str, ...]]], device: str = "auto") -> list[str]:
    return [_place(seen, rank, device) for rank in range(len(seen))]


def test_ranks_that_see_all_cards_of_their_machine_take_one_each() -> None:
    assert places([("a", ("x", "y"))] * 2 + [("b", ("z", "w"))] * 2) == ["cuda:0", "cuda:1"] * 2


def test_ranks_that_are_each_bound_to_a_card_take_it() -> None:
    """Catches: `srun --gpus-per-task=1`, whose second task sees one card alone and asks for cuda:1, or trains on the
    processor."""
    assert places([("a", ("x",)), ("a", ("y",)), ("b", ("x",))]) == ["cuda:0"] * 3


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("seen", "says"),
    [
        ([("a", ("x",))] * 3, "a runs 3 ranks and torch sees 1 card there"),
        ([("a", ("x", "y"))] * 2 + [("b", ())], "b runs 1 rank and torch sees 0 cards there"),
    ],
)
def test_fewer_cards_than_ranks_are_refused_on_every_rank(
    seen: list[tuple[str, tuple[str, ...]]], says: str, device: str
) -> None:
    """Catches: a training of which some ranks, or all, go to the processor without a word."""
    for rank in range(len(seen)):
        with pytest.raises(WorldError, match=says):
            _place(seen, rank, device)


def test_without_any_card_auto_is_the_processor_and_cuda_is_refused() -> None:
    assert places([("a", ())] * 2) == ["cpu"] * 2
    with pytest.raises(WorldError, match=r"train\.device=cuda: a runs 2 ranks and torch sees 0 cards"):
        places([("a", ())] * 2, "cuda")
    assert places([("a", ("x",))] * 2, "cpu") == ["cpu"] * 2


def test_a_card_that_is_named_by_number_is_taken_where_there_is_one() -> None:
    """Catches: train.device=cuda:7 on a machine with two cards, which ended in a traceback of torch's."""
    assert places([("a", ("x", "y")), ("b", ("z", "w"))], "cuda:1") == ["cuda:1"] * 2
    said = r"train\.device=cuda:7: a runs 1 rank and torch sees 2 cards there: .*set train\.device=cuda or cpu"
    with pytest.raises(WorldError, match=said):
        places([("a", ("x", "y"))], "cuda:7")
    with pytest.raises(WorldError, match="a runs 2 ranks and torch sees 2 cards"):  # one card cannot be two ranks'
        places([("a", ("x", "y"))] * 2, "cuda:1")


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "CPU", "", "meta", "cuda:-1", "cuda:"])
def test_what_is_no_device_is_refused_by_the_config(device: str) -> None:
    """Catches: "Expected one of cpu, cuda, ipu, xpu, mkldnn …", after the dataset was read."""
    for setting in ("train", "evaluate", "score", "verify", "link.reranker"):
        with pytest.raises(ConfigError, match=rf"{setting}\.device.*is no device: name auto, cpu, cuda"):
            configuration.load(None, [f"{setting}.device={device}"])


def test_a_macs_gpu_is_for_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: ranks that hang in their first exchange; a message of torch's that names no setting."""
    with pytest.raises(DeviceError, match=r"train\.device=mps: torch finds no GPU of a Mac here"):
        _place([("a", ())], 0, "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert _place([("a", ())], 0, "mps") == "mps"
    with pytest.raises(WorldError, match="mps with 2 ranks"):
        _place([("a", ()), ("a", ())], 1, "mps")
