from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from i2e_pipeline.pages.palette import DAY, SERIES
from i2e_pipeline.train import curves, journal
from i2e_pipeline.train.journal import BadLoss, Journal, check_finite
from i2e_pipeline.train.parallel import World

IDS = [bytes([i]) * 16 for i in range(6)]


def open_journal(folder: Path, **overrides: Any) -> Journal:
    base = {"steps": 100, "batch_size": 8, "world": World(), "images": 80, "log_every": 10}
    return Journal(folder, **{**base, **overrides})


def train(book: Journal, first: int, last: int) -> None:
    for step in range(first, last + 1):
        parts = {"classification": torch.tensor(4.0 / step), "contrastive": 2.0 / step}
        book.step(step, {"loss": torch.tensor(3.0 / step), **parts}, 7.9e-4, 0.8, 0.0)


def of_kind(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in journal.rows(folder) if row["kind"] == kind]


_TIMES = ("time", "images_per_second", "wait", "time_shares", "mfu")


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in _TIMES} for row in rows]


def test_the_line_says_where_the_training_is() -> None:
    row = {
        "step": 120,
        "epoch": 3.21,
        "images_per_second": 1412.3,
        "wait": 0.0041,
        "losses": {"loss": 3.214, "classification": 4.0, "contrastive": 2.4},
        "learning_rate": 7.9e-4,
        "norm": 0.812,
    }
    assert journal.line(row, 2000, 180) == (
        "step 120/2,000  epoch 3.2  1,412 images/s  wait 0.4 %  "
        "loss 3.21 (classification 4, contrastive 2.4)  lr 7.9e-4  norm 0.812  eta 3 min"
    )
    assert "  wait 0.4 %  mfu 41.2 %  loss" in journal.line({**row, "mfu": 0.412}, 2000, 180)
    bare = {**row, "losses": {"loss": 3.2, "contrastive": 3.2}, "norm": None, "step": 2000}
    assert journal.line(bare, 2000, 0).endswith("loss 3.2  lr 7.9e-4"), "one part is the sum; nothing is left to do"


def test_losses_of_a_line_are_means_over_its_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = open_journal(tmp_path, steps=13, log_every=5)
    train(book, 1, 13)
    book.close()
    rows = of_kind(tmp_path, "step")
    assert [row["step"] for row in rows] == [5, 10, 13], "the last step has its line too"
    assert rows[0]["losses"]["loss"] == pytest.approx(sum(3 / s for s in range(1, 6)) / 5)
    assert rows[2]["losses"]["contrastive"] == pytest.approx(sum(2 / s for s in (11, 12, 13)) / 3)
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.3]
    assert rows[0]["norm"] == pytest.approx(0.8)
    assert len(caplog.messages) == 3
    assert "eta" not in caplog.messages[-1]


def test_speed_and_wait_are_of_the_time_since_the_last_line_without_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    book = open_journal(tmp_path, log_every=2, steps=100)
    waited = 0.0
    for step in range(1, 5):
        now[0] += 2.0 if step < 3 else 1.0
        waited += 0.5 if step < 3 else 0.1
        book.step(step, {"loss": 1.0}, 1e-3, None, waited)
        with book.outside():
            now[0] += 50
    first, second = of_kind(tmp_path, "step")
    assert (first["images_per_second"], first["wait"]) == (2 * 8 / 4.0, 0.25)
    assert (second["images_per_second"], second["wait"]) == (2 * 8 / 2.0, 0.1)
    assert caplog.messages[1].endswith("eta 2 min"), "96 steps at the recent second each"


def test_time_shares_and_mfu_are_of_the_time_since_the_last_line_and_said_at_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches: shares of the whole training, or of a time that evaluations are in."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    book = open_journal(tmp_path, log_every=2, steps=100, peak_flops=50.0)
    book.evaluation(0, {"mAP": 0.1})
    spent = {"towers": 0.0, "backward": 0.0, "between": 0.0}
    for step in range(1, 5):
        now[0] += 4.0 if step < 3 else 2.0
        spent["towers"] += 1.0
        spent["backward"] += 2.0 if step < 3 else 0.5
        # The host waits 3 s for the loader in all, most of them while the card is busy.
        spent["between"] += 0.5
        book.step(step, {"loss": 1.0}, 1e-3, None, step * 0.75, spent, operations=step * 100.0)
    now[0] += 50
    book.evaluation(4, {"mAP": 0.2})
    first, second = of_kind(tmp_path, "step")
    assert first["time_shares"] == {"data": 0.125, "towers": 0.25, "backward": 0.5, "rest": 0.125}
    assert second["time_shares"] == {"data": 0.25, "towers": 0.5, "backward": 0.25, "rest": 0.0}
    assert (first["mfu"], second["mfu"]) == (200 / 8 / 50, 200 / 4 / 50)
    assert [m for m in caplog.messages if m.startswith("time of")] == [
        "time of the steps: data 17 %, towers 33 %, backward 42 %, rest 8 %"
    ]


def test_a_resumed_journal_reads_like_one_run(tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    book = open_journal(straight)
    train(book, 1, 50)
    book.evaluation(50, {"mAP": 0.5})
    train(book, 51, 100)
    book = open_journal(killed)
    train(book, 1, 50)
    book.evaluation(50, {"mAP": 0.5})
    train(book, 51, 77)  # killed here, with a checkpoint of step 50
    book.evaluation(77, {"mAP": 0.6})
    book = open_journal(killed, start=50)
    book.evaluation(50, {"mAP": 0.5})  # done again
    train(book, 51, 100)
    for kind in ("step", "evaluation"):
        assert without_times(of_kind(killed, kind)) == without_times(of_kind(straight, kind))
    assert [row["step"] for row in of_kind(killed, "start")] == [0, 50]


def test_a_training_that_begins_anew_has_a_journal_of_its_own(tmp_path: Path) -> None:
    """Catches: the figures before the first step are those of an earlier training in the folder."""
    book = open_journal(tmp_path)
    book.evaluation(0, {"mAP": 0.9})
    train(book, 1, 20)
    book = open_journal(tmp_path)
    book.evaluation(0, {"mAP": 0.1})
    train(book, 1, 10)
    assert [row["figures"] for row in of_kind(tmp_path, "evaluation")] == [{"mAP": 0.1}]
    assert [row["step"] for row in of_kind(tmp_path, "step")] == [10]
    assert len(of_kind(tmp_path, "start")) == 1


@pytest.mark.parametrize("torn", [b'{"kind": "step", "st', b'{"kind": "step"}', b"\xff\xfe", b"[1]"])
def test_a_line_that_a_kill_cut_off_is_dropped_and_said(
    tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    book = open_journal(tmp_path)
    train(book, 1, 20)
    book.close()
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(torn)
    book = open_journal(tmp_path, start=20)
    train(book, 21, 30)
    book.close()
    assert [row["step"] for row in of_kind(tmp_path, "step")] == [10, 20, 30]
    assert len([s for s in caplog.messages if "line 4: cut off" in s]) == 1
    for text in (tmp_path / "journal.jsonl").read_text().splitlines():
        json.loads(text)


def test_only_the_first_rank_says_and_writes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = open_journal(tmp_path / "train", world=World(1, 2))
    train(book, 1, 20)
    book.evaluation(20, {"mAP": 0.5})
    assert book.picture() is None
    book.close()
    assert not caplog.messages
    assert not (tmp_path / "train").exists()


def test_figures_that_are_no_numbers_stay_json(tmp_path: Path) -> None:
    book = open_journal(tmp_path, log_every=1)
    book.step(1, {"loss": 1.0}, 1e-3, math.inf, 0.0)
    book.evaluation(1, {"mAP": math.nan})
    text = (tmp_path / "journal.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert of_kind(tmp_path, "evaluation")[0]["figures"] == {"mAP": "nan"}
    assert book.picture()


def test_tensorboard_shows_the_same_and_a_resume_replaces_what_is_done_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    book = open_journal(tmp_path)
    train(book, 1, 40)
    book.evaluation(40, {"mAP": 0.25})
    book.close()
    book = open_journal(tmp_path, start=20)
    train(book, 21, 30)
    book.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(e.step, e.value) for e in events.Scalars("loss/classification")]
    assert [step for step, _ in shown] == [10, 20, 30]
    assert [v for _, v in shown] == pytest.approx([r["losses"]["classification"] for r in of_kind(tmp_path, "step")])


def test_without_tensorboard_there_is_one_line_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import builtins

    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    book = open_journal(tmp_path)
    train(book, 1, 10)
    book.close()
    assert [s for s in caplog.messages if "TensorBoard" in s] == caplog.messages[:1]
    assert of_kind(tmp_path, "step")


# --- the picture


def test_the_picture_shows_each_part_and_what_is_held_out(tmp_path: Path) -> None:
    book = open_journal(tmp_path)
    assert book.picture() is None, "no step yet"
    book.evaluation(0, {"mAP": 0.1})
    train(book, 1, 100)
    plain = book.picture()
    assert plain == tmp_path / "loss.png"
    before = _colours(plain)
    assert {DAY["ink"], *SERIES[:2]} <= before, "the sum, two parts"
    assert SERIES[2] not in before
    book.evaluation(100, {"mAP": 0.4, "kNN": 0.3, "zero-shot": 0.2})
    book.picture()
    assert SERIES[2] in _colours(plain), "the third figure"


def _colours(path: Path) -> set[str]:
    from PIL import Image

    with Image.open(path) as image:
        counted = image.convert("RGB").getcolors(1 << 24) or []
    return {f"#{r:02x}{g:02x}{b:02x}" for n, (r, g, b) in counted if n > 20}


def test_the_smoothed_curve_keeps_a_level_and_follows_a_slope() -> None:
    """Catches: a running mean that is pulled to zero at its start, or lags behind."""
    assert curves.smoothed([3.0] * 9, 4) == pytest.approx([3.0] * 9)
    slope = [float(x) for x in range(40)]
    assert curves.smoothed(slope, 5)[10:30] == pytest.approx(slope[10:30])
    assert curves.smoothed([1.0], 3) == [1.0]


def test_a_curve_of_a_long_training_is_drawn_by_its_means_and_its_ends() -> None:
    """Catches: a picture of 120,000 lines that all ranks wait hours for, over a training's saves."""
    x = list(range(120_000))
    y = [float(n % 2) for n in x]
    at, means, ends = curves.binned(x, y)
    assert len(at) == 1000
    assert at[0] == pytest.approx(59.5)
    assert means == pytest.approx([0.5] * 1000)
    assert set(ends) == {(0.0, 1.0)}
    short = curves.binned([3, 4, 9], [1.0, 2.0, 4.0])
    assert short == ([3, 4, 9], [1, 2, 4], [(1, 1), (2, 2), (4, 4)])


def test_the_picture_is_drawn_beside_the_training_and_is_whole_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: ranks that wait for a picture; one that lacks the last steps."""
    drawn, go = [], threading.Event()

    def draw(found: list[dict[str, Any]], *_: Any) -> None:
        go.wait(20)
        drawn.append(max(row["step"] for row in found))

    monkeypatch.setattr(curves, "draw", draw)
    book = open_journal(tmp_path)
    train(book, 1, 10)
    book.draw()
    train(book, 11, 20)
    book.draw()
    book.draw()
    assert drawn == []
    go.set()
    book.close()
    assert drawn[-1] == 20
    assert len(drawn) == 2


def test_a_picture_that_cannot_be_drawn_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(curves, "draw", lambda *_: 1 / 0)
    book = open_journal(tmp_path)
    train(book, 1, 10)
    book.draw()
    book.close()
    assert "loss.png was not drawn: ZeroDivisionError" in caplog.text


# --- a loss that is no number


def stop(folder: Path, losses: dict[str, Any], **how: Any) -> None:
    check_finite(losses, 12, IDS, World(), folder, config_digest="c0ffee", **how)


def test_finite_losses_pass_and_leave_nothing(tmp_path: Path) -> None:
    stop(tmp_path, {"loss": torch.tensor(3.0), "contrastive": 2.0}, save=lambda: pytest.fail("nothing to save"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_names_step_part_images_and_the_saved_state(tmp_path: Path, value: float) -> None:
    losses = {"loss": torch.tensor(value), "classification": 4.0, "contrastive": value}
    with pytest.raises(BadLoss) as stopped:
        stop(tmp_path, losses, save=lambda: tmp_path / "checkpoints" / "step-00000011")
    message = str(stopped.value)
    assert f"step 12: loss is {value}, contrastive is {value}, so" in message
    assert "classification" not in message
    assert IDS[0].hex() in message
    assert str(tmp_path / "checkpoints" / "step-00000011") in message
    told = json.loads((tmp_path / "bad-step-00000012.json").read_text())
    assert told == {
        "step": 12,
        "config_digest": "c0ffee",
        "ranks": [
            {
                "rank": 0,
                "losses": {"loss": repr(value), "classification": 4.0, "contrastive": repr(value)},
                "image_ids": [image_id.hex() for image_id in IDS],
            }
        ],
    }


def _bad_on_rank_one(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meet")
    world = World(rank, 2)
    own = [IDS[rank]]
    check_finite({"loss": 1.0}, 11, own, world, folder, config_digest="c")
    try:
        bad = {"loss": math.nan if rank else 1.0, "gradient norm": math.nan}  # which is the same on all ranks
        check_finite(bad, 12, own, world, folder, config_digest="c")
    except BadLoss as error:
        Path(folder, f"told-{rank}").write_text(str(error))
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_bad_loss_on_one_rank_stops_all(tmp_path: Path) -> None:
    """Catches: one rank stops, the others wait for it until the timeout; the images of a rank that has no bad loss."""
    torch.multiprocessing.start_processes(_bad_on_rank_one, (str(tmp_path),), nprocs=2, start_method="forkserver")
    messages = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert (
        "step 12: loss is nan, gradient norm is nan on rank 1, so the training stopped before it was applied"
        in messages[0]
    )
    assert f"First images: {IDS[1].hex()};" in messages[0]
    told = json.loads((tmp_path / "bad-step-00000012.json").read_text())
    assert [rank["image_ids"] for rank in told["ranks"]] == [[IDS[0].hex()], [IDS[1].hex()]]
