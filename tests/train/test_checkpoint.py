from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from i2e_pipeline.core import digests
from i2e_pipeline.train import checkpoint
from i2e_pipeline.train.checkpoint import CheckpointError, HeadRows, Part, State
from i2e_pipeline.train.parallel import World

WIDTH = 4
ENTITIES = torch.tensor([70, 30, 50, 10, 90, 20, 60])
ALONE = World()


def state(step: int = 5, **overrides: Any) -> State:
    base = {"position": step * 8, "width": WIDTH, "recipe": "multi_task", "config": {"steps": 9}, "dataset": "f1"}
    return State(step, **{**base, **overrides})


def head(rank: int = 0, ranks: int = 1, dtype: torch.dtype = torch.float32) -> HeadRows:
    """Every `ranks`-th class, as the head shares them out; weights tell the entity that they are of."""
    own_C = torch.arange(rank, len(ENTITIES), ranks)
    return HeadRows(own_C, ENTITIES[own_C], _vectors(ENTITIES[own_C]).to(dtype), ENTITIES[own_C].float() / 8)


def _vectors(entity_C: Tensor) -> Tensor:
    return entity_C[:, None].float() + torch.arange(WIDTH) / 8


def towers(value: float = 1.0) -> dict[str, Tensor]:
    return {
        "body.weight": torch.full((3, 2), value),
        "scale": torch.tensor(value),
        "norm.batches": torch.tensor(7),
    }


def save(folder: Path, step: int = 5, **overrides: Any) -> Path:
    brought = {"towers": towers(float(step)), "head": head(), **overrides}
    for kind in brought.keys() & {"towers", "ema", "optimizer"}:
        brought[kind] = Part(brought[kind])
    return checkpoint.Save(folder, brought.pop("state", state(step)), ALONE, **brought).finish()


def loaded(at: Path, entity_C: Tensor, **how: Any) -> dict[int, tuple[int, list[float], float]]:
    """class index → (entity, weights, accumulator), of all rows."""
    found = {}
    for rows in checkpoint.load(at).head_rows(entity_C, WIDTH, **how):
        for c, e, w, a in zip(rows.class_C, rows.entity_C, rows.weights_CD, rows.accumulators_C, strict=True):
            assert int(c) not in found
            found[int(c)] = (int(e), w.tolist(), float(a))
    return found


def expected(entity_C: Tensor) -> dict[int, tuple[int, list[float], float]]:
    known = set(ENTITIES.tolist())
    return {
        index: (entity, _vectors(torch.tensor([entity]))[0].tolist(), entity / 8)
        for index, entity in enumerate(entity_C.tolist())
        if entity in known
    }


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    moments = {"body.weight/exp_avg": torch.rand(3, 2), "body.weight/exp_avg_sq": torch.rand(3, 2)}
    told = state(5, best=0.25, counts={"corrupt": 3})
    at = save(tmp_path, state=told, ema={"body.weight": torch.zeros(3, 2)}, optimizer=moments)
    found = checkpoint.load(at)
    assert found.state == told
    assert found.classes == len(ENTITIES)
    assert {n: t.tolist() for n, t in found.towers.items()} == {n: t.tolist() for n, t in towers(5.0).items()}
    assert found.towers["norm.batches"].dtype == torch.int64
    assert found.optimizer is not None
    assert {n: t.tolist() for n, t in found.optimizer.items()} == {n: t.tolist() for n, t in moments.items()}
    assert found.weights["body.weight"].tolist() == torch.zeros(3, 2).tolist(), "the mean, where there is one"
    assert found.weights["scale"] == 5, "what the mean does not cover is the towers' own"
    assert loaded(at, ENTITIES) == expected(ENTITIES)


def test_a_recipe_without_a_head_saves_and_loads(tmp_path: Path) -> None:
    found = checkpoint.load(save(tmp_path, head=None))
    assert found.classes == 0
    assert list(found.head_rows(ENTITIES, WIDTH)) == []
    assert found.ema is None
    assert found.optimizer is None


def test_weights_are_float32_and_class_vectors_keep_their_type(tmp_path: Path) -> None:
    at = save(tmp_path, towers={"w": torch.ones(2, dtype=torch.bfloat16)}, head=head(dtype=torch.bfloat16))
    found = checkpoint.load(at)
    assert found.towers["w"].dtype == torch.float32
    assert next(found.head_rows(ENTITIES, WIDTH)).weights_CD.dtype == torch.bfloat16


def test_tied_weights_views_and_empty_tensors_are_saved_whole_and_once(tmp_path: Path) -> None:
    """Catches: safetensors refuses names that share memory, and tensors that are not contiguous."""
    big = torch.arange(12.0).reshape(3, 4)
    given = {"a": big, "b": big, "row": big[1], "turned": big.T, "none": torch.zeros(0, 4), "none2": torch.zeros(0)}
    found = checkpoint.load(save(tmp_path, towers=given)).towers
    assert {n: t.tolist() for n, t in found.items()} == {n: t.tolist() for n, t in given.items()}


def test_files_are_safetensors_and_json_only(tmp_path: Path) -> None:
    at = save(tmp_path, ema=towers(), optimizer={"w/exp_avg": torch.ones(2)})
    checkpoint.mark_best(tmp_path, 5, 0.5)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with safe_open(path, framework="np") as file:
                assert list(file.keys())
    assert at == tmp_path / "checkpoints" / "step-00000005"


def test_a_step_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    at = save(tmp_path)
    before = {p.name: p.read_bytes() for p in at.iterdir()}
    assert save(tmp_path, towers=towers(99.0)) == at
    assert {p.name: p.read_bytes() for p in at.iterdir()} == before


# --- the head's rows on other ranks and other datasets


@pytest.mark.parametrize("ranks", [1, 3])
def test_each_rank_of_any_number_takes_its_rows(tmp_path: Path, ranks: int) -> None:
    at = save(tmp_path)
    shares = [loaded(at, ENTITIES, wanted=lambda c, rank=rank: c % ranks == rank) for rank in range(ranks)]
    assert sum(map(len, shares)) == len(ENTITIES)
    assert {k: v for share in shares for k, v in share.items()} == expected(ENTITIES)


def test_rows_follow_their_entity_to_another_class_index(tmp_path: Path) -> None:
    at = save(tmp_path)
    fresh = torch.tensor([5, 90, 70, 15, 10, 30, 60, 25])  # 20 and 50 are gone; 5, 15 and 25 are new
    assert loaded(at, fresh) == expected(fresh)
    change = checkpoint.load(at).class_change(fresh)
    assert (change.kept, change.renumbered, change.new, change.gone) == (5, 4, 3, 2)
    assert change
    assert str(change) == (
        "entity head: 5 classes from the checkpoint (4 under another index), 3 new ones start fresh, "
        "2 are not in this dataset and were left out"
    )


def test_the_same_entities_are_no_change(tmp_path: Path) -> None:
    change = checkpoint.load(save(tmp_path)).class_change(ENTITIES)
    assert not change
    assert change.kept == len(ENTITIES)


def test_many_rows_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_ROWS_AT_ONCE", 3)
    at = save(tmp_path)
    assert [len(rows.class_C) for rows in checkpoint.load(at).head_rows(ENTITIES, WIDTH)] == [3, 3, 1]
    assert loaded(at, ENTITIES) == expected(ENTITIES)


def test_another_width_is_refused(tmp_path: Path) -> None:
    found = checkpoint.load(save(tmp_path))
    with pytest.raises(CheckpointError, match=r"vectors of 4 numbers and the towers make 8.*train\.encoder"):
        next(found.head_rows(ENTITIES, 8))


# --- what is not whole


def test_an_unfinished_save_is_said_not_read_and_removed_by_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5)
    torn = tmp_path / "checkpoints" / ".step-00000007.tmp-abc"
    torn.mkdir()
    (torn / "towers.safetensors").write_bytes(b"half")
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.name == "step-00000005"
    assert torn.exists()
    assert len(caplog.messages) == 1
    assert str(torn) in caplog.messages[0]
    save(tmp_path, 7)
    assert not torn.exists()
    assert checkpoint.steps(tmp_path) == [5, 7]


def test_a_folder_without_its_state_is_passed_over_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 5)
    half = save(tmp_path, 6)
    (half / "state.json").unlink()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.name == "step-00000005"
    assert len(caplog.messages) == 1
    assert "step-00000006: passed over" in caplog.messages[0]
    with pytest.raises(CheckpointError, match=r"step-00000006 is no whole checkpoint: it has no state\.json"):
        checkpoint.load(half)
    with pytest.raises(CheckpointError, match=r"step-00000006 is there without its state\.json: remove it"):
        save(tmp_path, 6)


def test_without_any_checkpoint_there_is_no_latest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert checkpoint.steps(tmp_path) == []


@pytest.mark.parametrize("file", ["towers.safetensors", "head-00000-of-00001.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "header", "zeros", "gone"])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, file: str, damage: str) -> None:
    at = save(tmp_path)
    content = (at / file).read_bytes()
    if damage == "cut":
        (at / file).write_bytes(content[: len(content) // 2])
    elif damage == "header":
        (at / file).write_bytes(b"\xff" * 16 + content[16:])
    elif damage == "zeros":
        (at / file).write_bytes(content[:-40] + b"\0" * 40)
    elif file == "state.json":
        return  # test_a_folder_without_its_state…
    else:
        (at / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} is damaged.*remove the folder {at}, and the training goes on"):
        checkpoint.load(at)


def test_a_checkpoint_from_before_there_were_digests_is_read(tmp_path: Path) -> None:
    at = save(tmp_path)
    tree = json.loads((at / "state.json").read_text())
    del tree["digests"], tree["digest"]
    (at / "state.json").write_text(json.dumps(tree))
    assert checkpoint.load(at).towers.keys() == towers().keys()


@pytest.mark.parametrize(
    "changed",
    [{"position": 73}, {"step": 4}, {"config": {"steps": 8}}, {"best": 0.9}, {"classes": 6}, {"more": 1}],
)
def test_a_state_that_says_something_else_than_was_written_is_damaged(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Catches: a training that goes on at another sample, or counts its steps otherwise, without a word."""
    at = save(tmp_path, state=state(best=0.1 + 0.2, config={"betas": (0.9, 0.98), "name": "é", "rate": 1e-30}))
    assert checkpoint.load(at).state.best == 0.1 + 0.2
    tree = json.loads((at / "state.json").read_text())
    (at / "state.json").write_text(json.dumps({**tree, **changed}))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        checkpoint.load(at)


def test_a_checkpoint_under_the_name_of_another_step_is_refused(tmp_path: Path) -> None:
    at = save(tmp_path)
    other = at.rename(at.with_name("step-00000004"))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged \(it is of step 5\)"):
        checkpoint.load(other)
    assert checkpoint.load(other.rename(tmp_path / "mine")).state.step == 5


@pytest.mark.parametrize(
    "changed",
    [
        {"files": {"../other.safetensors": 1}}, {"files": {"/etc/passwd": 1}}, {"files": {"h" * 300: 1}},
        {"files": {}}, {"files": 3}, {"files": None},
        {"classes": "many"}, {"classes": None}, {"digests": 3}, {"digests": None},
    ],
)  # fmt: skip
def test_a_state_that_is_none_is_named(tmp_path: Path, changed: dict[str, Any]) -> None:
    """A checkpoint may be somebody else's: what it names lies in its folder."""
    at = save(tmp_path)
    tree = json.loads((at / "state.json").read_text())
    for said in ({**tree, **changed}, [tree], 3):
        (at / "state.json").write_text(json.dumps(said))
        with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
            checkpoint.load(at)


@pytest.mark.parametrize("lacking", ["entity_C", "weights_CD", "accumulators_C"])
def test_a_head_that_lacks_a_part_is_named(tmp_path: Path, lacking: str) -> None:
    from safetensors.torch import load_file, save_file

    at = save(tmp_path)
    path = at / "head-00000-of-00001.safetensors"
    save_file({name: part for name, part in load_file(path).items() if name != lacking}, path)
    tree = json.loads((at / "state.json").read_text())
    tree["files"][path.name], tree["digests"][path.name] = path.stat().st_size, digests.of_file(str(path))
    del tree["digest"]
    (at / "state.json").write_text(json.dumps(tree))
    read = checkpoint.load(at)
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged .*it lacks {lacking}"):
        list(read.head_rows(torch.arange(3), read.state.width))


@pytest.mark.parametrize("size", ["12", 1.5, None, [1], True])
def test_a_size_that_is_no_number_is_a_damaged_checkpoint(tmp_path: Path, size: object) -> None:
    """Catches: a message about a size that fails over it."""
    at = save(tmp_path)
    tree = json.loads((at / "state.json").read_text())
    tree["files"]["towers.safetensors"] = size
    (at / "state.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"state\.json"):
        checkpoint.load(at)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    at = save(tmp_path)
    tree = json.loads((at / "state.json").read_text())
    (at / "state.json").write_text(json.dumps({**tree, "format_version": 99}))
    with pytest.raises(CheckpointError, match="has format 99, and this version of i2e_pipeline reads 1"):
        checkpoint.load(at)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"step-00000005 could not be saved: rank 0.*No space left"):
        save(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == []


# --- which ones stay


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    checkpoint.mark_best(tmp_path, 2, 0.75)
    assert checkpoint.prune(tmp_path, keep=2) == [1, 3]
    assert checkpoint.steps(tmp_path) == [2, 4, 5]
    assert checkpoint.best(tmp_path) == (2, 0.75)
    assert checkpoint.prune(tmp_path, keep=2) == []


def test_an_unreadable_best_removes_nothing(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json cannot be read"):
        checkpoint.prune(tmp_path, keep=1)
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_a_training_that_goes_on_from_an_earlier_step_drops_the_later_ones(tmp_path: Path) -> None:
    """Catches: the best figure of what was dropped, so that no later checkpoint is ever the best."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    checkpoint.mark_best(tmp_path, 2, 0.75)
    assert checkpoint.drop_beyond(tmp_path, 2) == [3]
    assert checkpoint.best(tmp_path) == (2, 0.75)
    assert checkpoint.drop_beyond(tmp_path, -1) == [1, 2]
    assert checkpoint.steps(tmp_path) == []
    assert checkpoint.best(tmp_path) is None


def test_of_a_save_in_the_background_the_head_alone_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: towers, means and moments twice in the host's memory, and a training that waits for the second copy."""
    copied: list[Tensor] = []
    monkeypatch.setattr(checkpoint, "_copy", lambda x: (copied.append(x), x.clone())[1])
    rows = head()
    save = checkpoint.Save(
        tmp_path, state(), ALONE, towers=Part(towers()), optimizer=Part(towers()), head=rows, copies=True
    )
    rows.weights_CD.zero_()
    assert loaded(save.finish(), ENTITIES) == expected(ENTITIES)
    assert {id(x) for x in copied} == {id(x) for x in vars(rows).values()}


def test_a_save_that_is_abandoned_writes_no_further_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: Ctrl-C twice, which waits for a whole checkpoint that nobody will read."""
    begun, go_on, write = threading.Event(), threading.Event(), checkpoint._write

    def slow(*how: Any) -> None:
        begun.set()
        go_on.wait()
        write(*how)

    monkeypatch.setattr(checkpoint, "_write", slow)
    save = checkpoint.Save(tmp_path, state(), ALONE, towers=Part(towers()), optimizer=Part(towers()), head=head())
    begun.wait()
    threading.Timer(0.1, go_on.set).start()
    save.abandon()
    assert save.written
    assert len(list(tmp_path.glob("checkpoints/.step-*/*"))) == 1
    assert checkpoint.steps(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("through", ["abandon", "finish"])
def test_who_ends_at_once_waits_for_no_store(through: str, tmp_path: Path) -> None:
    """Catches: a second Ctrl-C that waits for an upload to a store which does not answer: for a thread, for a pool of
    threads, or at the end of the process. In a process of its own, since what is waited for is its end."""
    script = f"""
import sys, threading, time
from pathlib import Path
import torch
from i2e_pipeline.train import away, checkpoint
from i2e_pipeline.train.checkpoint import Part, Save, State
from i2e_pipeline.train.parallel import World
checkpoint._is_whole = checkpoint.sweep = lambda *_: False
begun = threading.Event()
def copy(source, target):
    begun.set()
    time.sleep(600)
away.files.copy = copy
spool = Path({str(tmp_path)!r})
save = Save("s3://bucket/run", State(1, 8, 4, "multi_task", {{}}, "f1"), World(),
            towers=Part({{"a": torch.ones(3)}}), optimizer=Part({{"b": torch.ones(3)}}), spool=spool)
begun.wait()
if {through!r} == "abandon":
    save.abandon(at_once=True)
else:
    import signal
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    def again(*_): raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, again)
    try:
        save.finish()
    except KeyboardInterrupt:
        pass
print("ends with", sorted(f.name for f in spool.rglob("*.safetensors")), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ends with ['towers.safetensors']\n"


def in_parts(folder: Path) -> Path:
    """A checkpoint whose towers are in three parts, the second of them empty."""
    of = list(towers().items())
    parts = [Part(dict(of[:1]), 0, 3), Part({}, 1, 3), Part(dict(of[1:]), 2, 3)]
    saves = [checkpoint.Save(folder / str(n), state(5), ALONE, towers=part) for n, part in enumerate(parts)]
    whole, *others = (save.finish() for save in saves)
    tree = json.loads((whole / "state.json").read_text())
    for other in others:
        for file in other.glob("*.safetensors"):
            file.rename(whole / file.name)
        of_other = json.loads((other / "state.json").read_text())
        tree["files"] |= of_other["files"]
        tree["digests"] |= of_other["digests"]
    del tree["digest"]
    (whole / "state.json").write_text(json.dumps(tree))
    return Path(whole)


def test_towers_in_parts_are_read_as_one(tmp_path: Path) -> None:
    found = checkpoint.load(in_parts(tmp_path)).towers
    assert len(found) == 3
    assert {n: t.tolist() for n, t in found.items()} == {n: t.tolist() for n, t in towers().items()}


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_part_that_is_missing_is_named(tmp_path: Path, lost: int) -> None:
    """Catches: towers some of whose tensors stay random, because state.json does not say that there are more files."""
    at = in_parts(tmp_path)
    tree = json.loads((at / "state.json").read_text())
    del tree["files"][f"towers-{lost:05d}-of-00003.safetensors"]
    (at / "state.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"parts of towers: \d of 3, \d of 3"):
        checkpoint.load(at)


# --- several processes


def _save_as_rank(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    world = World(rank, 2)
    for step in (5, 5, 6):
        at = checkpoint.Save(
            folder, state(step), world, towers=Part(towers()) if world.first else None, head=head(rank, 2)
        ).finish()
        assert checkpoint.load(at).classes == len(ENTITIES), "whole for every rank when save returns"
    # A rank that cannot write stops all of them, with its reason.
    if rank == 1:
        checkpoint.save_file = _no_space  # type: ignore[assignment]
    try:
        checkpoint.Save(
            folder, state(7), world, towers=Part(towers()) if world.first else None, head=head(rank, 2)
        ).finish()
    except CheckpointError as error:
        Path(folder, f"told-{rank}").write_text(str(error))
    # Each reads its share of the files, and damage that one sees is told to all.
    damaged = Path(folder) / "checkpoints" / "step-00000006"
    if rank == 0:
        path = damaged / "head-00001-of-00002.safetensors"
        path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    world.barrier()
    try:
        checkpoint.load(damaged, world)
    except CheckpointError as error:
        Path(folder, f"saw-{rank}").write_text(str(error))
    dist.destroy_process_group()


def _no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_two_ranks_write_what_one_or_three_read(tmp_path: Path) -> None:
    """Catches: head rows tied to the number of ranks (insightface #2027); one rank failing while others wait."""
    torch.multiprocessing.start_processes(_save_as_rank, (str(tmp_path),), nprocs=2, start_method="forkserver")
    assert checkpoint.steps(tmp_path) == [5, 6]
    at = tmp_path / "checkpoints" / "step-00000005"
    assert [p.name for p in sorted(at.glob("head-*"))] == [f"head-0000{r}-of-00002.safetensors" for r in (0, 1)]
    assert loaded(at, ENTITIES) == expected(ENTITIES)
    shares = [loaded(at, ENTITIES, wanted=lambda c, rank=rank: c % 3 == rank) for rank in range(3)]
    assert {k: v for share in shares for k, v in share.items()} == expected(ENTITIES)
    for rank in (0, 1):
        assert "rank 1: [Errno 28] No space left" in (tmp_path / f"told-{rank}").read_text()
        assert "head-00001-of-00002.safetensors is damaged (its content" in (tmp_path / f"saw-{rank}").read_text()
    (at / "head-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"head-00001-of-00002\.safetensors is damaged"):
        checkpoint.load(at)


def _fetch_as_machine(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["TMPDIR"] = str(Path(folder, f"machine-{rank}"))
    tempfile.tempdir = None
    Path(os.environ["TMPDIR"]).mkdir()
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    world, at = World(rank, 2), f"{folder}/store/checkpoints/step-00000005"
    checkpoint.files.is_local = lambda path: "/store" not in path
    own = checkpoint.load(at, world).folder
    assert own.is_relative_to(os.environ["TMPDIR"])
    for file in ("head-00000-of-00001.safetensors", "towers.safetensors"):
        content = (own / file).read_bytes()
        if rank == 1:
            (own / file).write_bytes(content[:-8] + b"\0" * 8)
        world.barrier()
        with pytest.raises(CheckpointError, match=f"machine-1/.*{file} is damaged .its content"):
            checkpoint.load(at, world)
        (own / file).write_bytes(content)
    dist.destroy_process_group()


@pytest.mark.slow
def test_each_machine_compares_all_of_its_copy(tmp_path: Path) -> None:
    """Catches: a copy that a machine has of a store's checkpoint, some files of which only another machine compared."""
    save(tmp_path / "store")
    torch.multiprocessing.start_processes(_fetch_as_machine, (str(tmp_path),), nprocs=2, start_method="forkserver")


def _save_for_ever(folder: str, first: int) -> None:
    torch.set_num_threads(1)
    for step in range(first, first + 10_000):
        value = Part({"w": torch.full((400, 500), float(step))})
        checkpoint.Save(folder, state(step), ALONE, towers=value, optimizer=value, head=head()).finish()
        Path(folder, f"saved-{step:05d}").touch()
        checkpoint.prune(folder, keep=2)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    """Catches: a checkpoint that has its name before it has its content; a prune that leaves half of one."""
    context = multiprocessing.get_context("forkserver")
    draw = random.Random(4)
    cut_off = last = 0
    for _ in range(25):
        process = context.Process(target=_save_for_ever, args=(str(tmp_path), last + 1))
        process.start()
        while not (tmp_path / f"saved-{last + 1:05d}").exists():
            assert process.is_alive(), "the save after a kill failed"
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        cut_off += bool(list((tmp_path / "checkpoints").glob(".step-*")))
        newest = checkpoint.latest(tmp_path)
        assert newest is not None
        found = checkpoint.load(newest)
        last = found.state.step
        told = int(max(tmp_path.glob("saved-*")).name.removeprefix("saved-"))
        assert last >= told, "a save that returned is there"
        for tensors in (found.towers, found.optimizer):
            assert tensors is not None
            np.testing.assert_array_equal(tensors["w"].numpy(), float(last))
        assert len(loaded(newest, ENTITIES)) == len(ENTITIES)
        for step in checkpoint.steps(tmp_path):
            checkpoint.load(tmp_path / "checkpoints" / checkpoint.name(step))
    assert cut_off, "no kill met a save: the test shows nothing"
