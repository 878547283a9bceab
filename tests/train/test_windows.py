"""Which row groups are read and held. A row group is some 64 MB of photos, so each read too many is seconds."""

from __future__ import annotations

from concurrent.futures import wait
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2e_pipeline.core import files
from i2e_pipeline.core.config import TrainConfig
from i2e_pipeline.dataset.published import DatasetError, open_published
from i2e_pipeline.train import order as order_module
from i2e_pipeline.train.groups import Group, Groups
from i2e_pipeline.train.order import Order
from i2e_pipeline.train.samples import Samples
from i2e_pipeline.train.windows import Windows
from tests.examples import examples
from tests.train.small_dataset import image_row, trained, write_dataset

COLUMNS = ["image.bytes", "alt_text"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """1,040 images, some held out, in row groups of 13 and fewer."""
    rows = [image_row(i, bytes=b"stored %d" % i) for i in range(1040)]
    folder = write_dataset(tmp_path_factory.mktemp("dataset") / "i2e", rows, group=13)
    return Samples.open(open_published(folder), TrainConfig(data={"hold_out_entities": 0.0, "hold_out_images": 0.1}))


def read(samples: Samples, order: Order, batch: int, ranks: int = 1, epochs: int = 3) -> list[int]:
    """Row groups that each rank reads; checks what is read, and that no more is held than said."""
    reads = []
    ids = trained(samples).image_ids()
    largest = int(samples.sizes_G.max())
    for rank in range(ranks):
        groups = Groups(samples, COLUMNS)
        windows = Windows(order, groups)
        lanes = -(-order.lanes // ranks) + (ranks > 1)
        for start in range(0, epochs * order.samples - batch + 1, batch):
            places = order.share(start, batch, rank, ranks)
            for sample, group in zip(places.sample.tolist(), windows.read(places), strict=True):
                image_id = ids[sample]
                number = str(group.value(1, sample)).removeprefix("alt text ")
                assert group.value(0, sample) == f"stored {number}".encode()
                assert image_row(int(number), bytes=b"")["image_id"] == image_id
            held = sum(len(group) for group in windows.held.values())
            # An epoch's last windows and the next one's first are open in one batch.
            assert held <= 2 * lanes * (order.window + 2 * largest)
        reads.append(groups.reads)
    return reads


@pytest.mark.parametrize(("held_out", "copied"), [(0.0, False), (0.1, False), (0.6, True)])
def test_few_of_a_row_groups_images_are_copied_and_most_left_in_place(
    tmp_path: Path, held_out: float, copied: bool
) -> None:
    """Catches: a row group of photos copied once more; photos that nobody trains on kept in memory."""
    rows = [image_row(i, bytes=b"stored %d" % i) for i in range(400)]
    folder = write_dataset(tmp_path / "i2e", rows, group=400, units=1)
    config = TrainConfig(data={"hold_out_entities": 0.0, "hold_out_images": held_out})
    samples = Samples.open(open_published(folder), config)
    group = Groups(samples, COLUMNS).read(0)
    assert [len(column) for column in group.columns] == [len(group) if copied else 400] * 2
    ids = trained(samples).image_ids()
    for sample in range(len(group)):
        number = int(str(group.value(1, sample)).removeprefix("alt text "))
        assert group.value(0, sample) == b"stored %d" % number
        assert image_row(number, bytes=b"")["image_id"] == ids[sample]


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("groups_ahead", [0, 1, 7, 1000])
def test_what_is_read_ahead_is_read_once_and_bounded(
    samples: Samples, monkeypatch: pytest.MonkeyPatch, readers: int, lanes: int, groups_ahead: int
) -> None:
    """Catches: a window that is read ahead, forgotten and read again; more in memory than was allowed; the rows of
    another training."""
    monkeypatch.setattr(order_module, "WHOLE", 1)
    order = Order(samples.sizes_G, batch_size=32, lanes=lanes, window=20)
    groups = Groups(samples, COLUMNS)
    size = int(samples.group_bytes_G.max())
    stop = 2 * order.samples
    alone = Windows(order, Groups(samples, COLUMNS))
    with closing(Windows(order, groups, readers, groups_ahead * size, stop)) as windows:
        for start in range(0, stop - 31, 32):
            places = order.share(start, 32)
            found, expected = windows.read(places), alone.read(places)
            assert [g.number for g in found] == [g.number for g in expected]
            assert all(a.columns == b.columns for a, b in zip(found, expected, strict=True))
            ahead = sum(groups.bytes_of(n) for n in windows._reading.keys() - alone._reading.keys())
            assert ahead <= groups_ahead * size
    assert groups.reads <= alone._groups.reads


def test_the_next_windows_are_there_before_they_are_needed(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "WHOLE", 1)
    order = Order(samples.sizes_G, batch_size=32, lanes=4, window=13)
    groups = Groups(samples, COLUMNS)
    needed: list[int] = []
    with closing(Windows(order, groups, 2, 10**9)) as windows:
        for start in range(0, order.samples - 31, 32):
            before = set(windows._reading)
            numbers = {g.number for g in windows.read(order.share(start, 32))}
            needed += [n for n in numbers - before if start]
    assert not needed


def test_a_row_group_that_cannot_be_read_stops_those_who_need_it_alone(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_module, "WHOLE", 1)
    order = Order(samples.sizes_G, batch_size=32, lanes=1, window=13)
    groups = Groups(samples, COLUMNS)
    first = {g.number for g in Windows(order, groups).read(order.share(0, 32))}
    read = groups.read

    def fails(number: int) -> Group:
        if number not in first:
            raise DatasetError(f"row group {number} is gone")
        return read(number)

    monkeypatch.setattr(groups, "read", fails)
    with closing(Windows(order, groups, 2, 10**9)) as windows:
        windows.read(order.share(0, 32))
        with pytest.raises(DatasetError, match="is gone"):
            windows.read(order.share(0, 320))


def test_what_failed_while_it_was_read_ahead_is_read_again_when_it_is_needed(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a store that was away for a minute ends the training an hour later, when the window opens."""
    monkeypatch.setattr(order_module, "WHOLE", 1)
    order = Order(samples.sizes_G, batch_size=32, lanes=1, window=13)
    groups = Groups(samples, COLUMNS)
    first = {g.number for g in Windows(order, groups).read(order.share(0, 32))}
    read, away = groups.read, True

    def fails(number: int) -> Group:
        if away and number not in first:
            raise DatasetError("the store is away")
        return read(number)

    monkeypatch.setattr(groups, "read", fails)
    with closing(Windows(order, groups, 2, 10**9)) as windows:
        windows.read(order.share(0, 32))
        wait(windows._reading.values())
        away = False
        for start in range(32, order.samples - 31, 32):
            windows.read(order.share(start, 32))


class Shaky:
    """A file system of a store whose reads fail now and then, and which counts them."""

    def __init__(self, fails: int, error: type[OSError] = OSError) -> None:
        self.fails, self.error, self.opened = fails, error, 0

    def __call__(self, path: str) -> tuple[Shaky, str]:
        return self, path.removeprefix("shaky://")

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.opened += 1
        if self.fails:
            self.fails -= 1
            raise self.error("connection reset")
        return pa.OSFile(f"/{path}")


@pytest.fixture
def remote(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> Samples:
    monkeypatch.setattr(files, "_FIRST_PAUSE", 0.001)
    folder = f"shaky://{samples.published.folder.lstrip('/')}"
    return replace(samples, published=replace(samples.published, folder=folder))


def test_a_store_that_fails_is_asked_again(
    samples: Samples, remote: Samples, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Shaky(files._TRIES - 1)
    monkeypatch.setattr(files, "open_filesystem", store)
    found = Groups(remote, COLUMNS).read(3)
    assert store.opened == files._TRIES
    assert caplog.text.count("connection reset; asked again in") == files._TRIES - 1
    monkeypatch.undo()
    assert found.columns == Groups(samples, COLUMNS).read(3).columns


def test_a_store_that_keeps_failing_stops_the_training(remote: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Shaky(1000)
    monkeypatch.setattr(files, "open_filesystem", store)
    with pytest.raises(DatasetError, match=r"shaky://.*row group 3: connection reset"):
        Groups(remote, COLUMNS).read(3)
    assert store.opened == files._TRIES


def test_a_file_that_is_gone_is_not_waited_for(remote: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Shaky(1000, FileNotFoundError)
    monkeypatch.setattr(files, "open_filesystem", store)
    with pytest.raises(DatasetError, match="belongs to the dataset and is not there"):
        Groups(remote, COLUMNS).read(3)
    assert store.opened == 1


def test_a_row_group_is_read_once_in_an_epoch(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: windows that cut row groups, and lanes that come to the one that they share at different times."""
    monkeypatch.setattr(order_module, "WHOLE", 1)
    groups = len(samples.sizes_G)
    for window in (7, 10, 16, 40):
        order = Order(samples.sizes_G, batch_size=32, lanes=8, window=window)
        assert order.lanes == 8
        assert read(samples, order, 32)[0] <= 3 * groups


def test_ranks_read_a_row_group_twice_only_between_their_lanes(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_module, "WHOLE", 1)
    order = Order(samples.sizes_G, batch_size=32, lanes=8, window=10)
    assert sum(read(samples, order, 32, ranks=4)) <= 1.1 * 3 * len(samples.sizes_G)


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_dataset_that_fits_is_read_once_for_all_epochs(
    samples: Samples, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    """Catches: everything read again at each epoch's start, beside the copy that is there."""
    if lanes > 1:
        monkeypatch.setattr(order_module, "WHOLE", len(samples) // lanes)
    order = Order(samples.sizes_G, batch_size=36, lanes=lanes, window=1024 // lanes)
    assert (order.lanes > 1) == (lanes > 1)
    assert read(samples, order, 36, epochs=4) == [len(samples.sizes_G)]


@settings(max_examples=examples(200))
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=60).filter(sum),
    st.integers(1, 9),
    st.integers(1, 60),
    st.integers(0, 3),
)
def test_a_window_ends_where_a_row_group_ends_and_is_of_the_asked_size(
    sizes: list[int], lanes: int, window: int, epoch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WHOLE", 1)
        order = Order(np.array(sizes), batch_size=5040, lanes=lanes, window=window)
    ends = np.cumsum(sizes)
    places = order.at(np.arange(epoch * order.samples, (epoch + 1) * order.samples))
    windows_of: dict[int, set[int]] = {}
    for lane in range(order.lanes):
        numbers = np.unique(places.window[places.lane == lane]).tolist()
        assert numbers == list(range(len(numbers)))
        for number in numbers:
            groups = np.unique(np.searchsorted(ends, order.window_samples(epoch, lane, number), side="right"))
            assert sum(sizes[g] for g in groups) <= order.window + 2 * max(sizes)
            for group in groups.tolist():
                windows_of.setdefault(group, set()).add(number + 1000 * lane)
    for group, at in windows_of.items():
        assert len(at) == len({w // 1000 for w in at}), f"row group {group} in several windows of a lane"
