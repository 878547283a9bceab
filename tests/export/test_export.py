"""What every form of export promises: whole, the same bytes whoever writes them, resumed, never mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands.export import FORMS, ExportError, export
from i2e_pipeline.core import files
from i2e_pipeline.dataset.published import open_published
from i2e_pipeline.export.shards import SPLITS, rows_of
from tests.dataset.test_published import delta
from tests.export.odd_dataset import facts, held, large_row, odd_row, small_shards, tree, write_odd
from tests.train.small_dataset import write_dataset

EVERY = sorted(FORMS)
SHARDED = sorted(name for name, form in FORMS.items() if form.shard_mb)
SHARDS = {"parquet": "images/*/*.parquet", "webdataset": "*/*.tar", "open_clip-csv": "_parts/*.tsv", "hf": "data/*"}
"""Files that say that a shard is there."""


def shards_in(target: Path, form: str) -> list[Path]:
    return [path for path in sorted(target.glob(SHARDS[form])) if not path.name.startswith(".")]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 MB in 12 files, so that shards of a megabyte are many."""
    rows = [large_row(n) for n in range(60)]
    return write_dataset(tmp_path_factory.mktemp("large") / "i2e", rows, units=12, group=2)


@pytest.mark.parametrize("form", SHARDED)
def test_shards_are_about_as_large_as_asked_and_hold_every_row_once(form: str, large: str, tmp_path: Path) -> None:
    rows = rows_of(open_published(large))
    found = []
    for split in SPLITS:
        shards = rows.shards(split, 1 << 20)
        assert [s.number for s in shards] == list(range(len(shards)))
        for shard in shards:
            batches = list(rows.read(shard))
            assert sum(b.num_rows for b in batches) == shard.rows
            assert sum(b.column("image").nbytes for b in batches) < 2 << 20
            found += [i for b in batches for i in b.column("image_id").to_pylist()]
    assert len(found) == len(set(found)) == 60
    made = small_shards(large, tmp_path, form)
    assert len(list(made.glob("images/*")) if form == "open_clip-csv" else shards_in(made, form)) > 25


@pytest.mark.parametrize("form", EVERY)
def test_equal_datasets_make_equal_bytes_whatever_the_threads(form: str, large: str, tmp_path: Path) -> None:
    """Catches: times and owners in tars, shards in the order of threads."""
    made = [tree(small_shards(large, tmp_path / str(n), form, threads=n)) for n in (1, 7)]
    assert made[0] == made[1]
    assert "manifest.json" in made[0]
    assert not [name for name in made[0] if ".tmp" in name or name.startswith("_parts")]


KILLED = """
import sys
from i2e_pipeline.commands.export import export
export(*sys.argv[1:4], shard_mb=int(sys.argv[4]) or None, threads=1)
"""


@pytest.mark.parametrize("form", EVERY)
def test_a_killed_export_goes_on_and_makes_nothing_twice(form: str, large: str, tmp_path: Path) -> None:
    """A process that is killed with some shards written. Catches: a manifest beside half of the files; half a shard
    that is taken for a whole one; shards that are written again."""
    command = [sys.executable, "-c", KILLED, large, str(tmp_path / "to"), form, "0" if form == "parquet" else "1"]
    target = tmp_path / "to" / "i2e"
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    deadline = time.monotonic() + 60
    while len(shards_in(target, form)) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL, "it had ended before: too few shards for this machine"
    assert not (target / "manifest.json").exists()
    seen = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards_in(target, form)}
    written: list[Any] = []
    kind = FORMS[form]
    write = kind.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "write", lambda self, shard: (written.append(shard), write(self, shard)))
        done = export(large, str(tmp_path / "to"), form, shard_mb=None if form == "parquet" else 1)
    assert len(written) + done.there == done.shards
    assert done.there >= len(seen)
    for path, stood in seen.items():
        if path.exists():  # parts of a table are put together at the end
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == stood
    assert tree(target) == tree(small_shards(large, tmp_path / "at once", form))


@pytest.mark.parametrize("form", EVERY)
def test_a_finished_export_is_left_alone_and_mended_where_it_lacks_something(
    form: str, large: str, tmp_path: Path
) -> None:
    target = small_shards(large, tmp_path, form)
    whole = tree(target)
    again = export(large, str(tmp_path), form, shard_mb=None if form == "parquet" else 1)
    assert again.there == again.shards
    assert tree(target) == whole
    lost = sorted(target.glob("images/*/*"))[3] if form == "open_clip-csv" else shards_in(target, form)[3]
    lost.unlink()
    (target / "older.parquet").write_bytes(b"of somebody else")
    assert export(large, str(tmp_path), form, shard_mb=None if form == "parquet" else 1).there < again.shards
    assert tree(target) == whole


def test_another_export_takes_the_place_of_the_one_before(large: str, tmp_path: Path) -> None:
    """Catches: shards of two datasets, forms or sizes side by side."""
    odd = write_odd(tmp_path / "odd")
    wanted = [
        (large, "webdataset", {}), (large, "webdataset", {"splits": ["train"]}), (large, "webdataset", {"shard_mb": 2}),
        (odd, "webdataset", {"shard_mb": 2}), (odd, "hf", {}), (odd, "open_clip-csv", {}), (odd, "parquet", {}),
        (odd, "parquet", {"splits": ["test"]}),
    ]  # fmt: skip
    for n, (dataset, form, options) in enumerate(wanted):
        target = small_shards(dataset, tmp_path / "one", form, **options)
        assert tree(target) == tree(small_shards(dataset, tmp_path / str(n), form, **options))


def test_a_kill_while_an_older_export_is_removed_leaves_a_folder_that_is_known(
    large: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: the mark goes first, and no later export dares to touch the rest."""
    target = small_shards(large, tmp_path, "webdataset")

    class Killed(BaseException):
        pass

    remove, calls = files.remove, []

    def dying(path: str) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise Killed
        remove(path)

    monkeypatch.setattr(files, "remove", dying)
    with pytest.raises(Killed):
        export(large, str(tmp_path), "hf", shard_mb=1)
    monkeypatch.undo()
    assert not (target / "manifest.json").exists()
    assert tree(small_shards(large, tmp_path, "hf")) == tree(small_shards(large, tmp_path / "fresh", "hf"))


def test_what_no_export_wrote_stays(large: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / "i2e").mkdir(parents=True)
    (tmp_path / "mine" / "i2e" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="no export wrote it"):
        export(large, str(tmp_path / "mine"), "hf")
    assert (tmp_path / "mine" / "i2e" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ExportError, match="is the output itself"):
        export(large, str(Path(large).parent), "webdataset")


@pytest.mark.parametrize("form", EVERY)
def test_of_a_delta_table_what_its_log_names_is_exported(form: str, tmp_path: Path) -> None:
    """Catches: rows that an overwrite replaced; a card that tells of Delta where there is none."""
    plain = write_odd(tmp_path / "plain" / "i2e")
    dataset = Path(write_odd(tmp_path / "delta" / "i2e", manifest={"storage": "delta"}))
    delta(dataset)
    assert len(list(dataset.glob("images/*/*.parquet"))) == 6
    made = small_shards(str(dataset), tmp_path / "to", form)
    assert held(made, form) == held(small_shards(plain, tmp_path / "wanted", form), form)
    assert len(held(made, form)) == 60
    assert "DeltaTable" not in (made / "README.md").read_text()
    if form == "parquet":
        assert open_published(str(made)).rows == 60
        assert json.loads((made / "manifest.json").read_text())["storage"] == "parquet"


@pytest.mark.parametrize("split", SPLITS)
def test_plain_parquet_of_a_split_is_a_dataset_of_its_own(split: str, tmp_path: Path) -> None:
    dataset = write_odd(tmp_path / "i2e")
    made = small_shards(dataset, tmp_path / "to", "parquet", splits=[split])
    published = open_published(str(made))
    assert facts(made) == facts(dataset, split)
    assert published.rows == published.manifest["images"] == len(facts(dataset, split))
    assert published.manifest["labels"] == sum(len(told) for _, _, told in facts(dataset, split).values())
    assert published.entities.equals(open_published(dataset).entities)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    dataset = write_odd(tmp_path / "i2e")
    with pytest.raises(ExportError, match="--split val: it is one of train, validation, test"):
        export(dataset, str(tmp_path / "to"), "hf", ["val"])
    with pytest.raises(ExportError, match="--shard-mb: parquet has the dataset's own files"):
        export(dataset, str(tmp_path / "to"), "parquet", shard_mb=3)
    bad = write_dataset(tmp_path / "ids", [odd_row(1)], units=1)
    file = next(Path(bad).glob("images/*/*.parquet"))
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.set_column(0, "image_id", pa.array(["../../up"])), file, row_group_size=8)
    with pytest.raises(
        ExportError, match=r"unit=.*: image_id '\.\./\.\./up' is not 32 hex digits, and files are named by"
    ):
        export(bad, str(tmp_path / "to"), "open_clip-csv")
    other = write_dataset(tmp_path / "other", [odd_row(1, split="dev")])
    with pytest.raises(ExportError, match="split 'dev' is none of train, validation, test"):
        export(other, str(tmp_path / "to"), "webdataset")
    only = write_dataset(tmp_path / "only", [odd_row(n, split="train") for n in range(4)])
    with pytest.raises(ExportError, match="holds no image of test: name other splits"):
        export(only, str(tmp_path / "to"), "webdataset", ["test"])


def test_text_that_is_no_utf8_leaves_in_no_form(tmp_path: Path) -> None:
    """A file that another program wrote: Arrow itself looks at no byte of a text that it reads."""
    dataset = write_odd(tmp_path / "i2e")
    file = next(Path(dataset).glob("images/*/*.parquet"))
    table = pq.read_table(file, partitioning=None)
    raw = pa.array([b"f\xfcr"] * len(table), pa.binary())
    broken = pa.Array.from_buffers(pa.string(), len(table), raw.buffers())
    pq.write_table(table.set_column(table.column_names.index("alt_text"), "alt_text", broken), file, row_group_size=8)
    for form in SHARDED:
        with pytest.raises(ExportError, match=rf"{file.name} holds rows that are none of a dataset.*publish it again"):
            export(dataset, str(tmp_path / form), form)
        assert not (tmp_path / form / "i2e" / "manifest.json").exists()


def test_a_dataset_of_format_1_is_exported_as_it_is(tmp_path: Path) -> None:
    rows = [{**odd_row(n)} for n in range(10)]
    for row in rows:
        row.pop("split")
    dataset = write_dataset(tmp_path / "i2e", rows, format_version=1)
    made = small_shards(dataset, tmp_path / "to", "parquet")
    assert open_published(str(made)).rows == 10
    with pytest.raises(ExportError, match="is of format 1, which has no splits: `i2e run` makes it one of today's"):
        export(dataset, str(tmp_path / "other"), "hf")


def test_a_dataset_that_is_published_meanwhile_is_not_called_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_odd(tmp_path / "i2e")
    finish = FORMS["hf"].finish

    def published_again(self: Any) -> None:
        finish(self)
        (Path(dataset) / "manifest.json").write_text("{}")

    monkeypatch.setattr(FORMS["hf"], "finish", published_again)
    with pytest.raises(ExportError, match="was published again while it was exported"):
        export(dataset, str(tmp_path / "to"), "hf")
    assert not (tmp_path / "to" / "i2e" / "manifest.json").exists()


def test_columns_that_the_dataset_keeps_of_its_source_go_along(tmp_path: Path) -> None:
    dataset = write_odd(tmp_path / "i2e")
    for n, file in enumerate(sorted(Path(dataset).glob("images/*/*.parquet"))):
        table = pq.read_table(file, partitioning=None)
        table = table.append_column("title", pa.array(["theirs"] * len(table)))
        if n:  # a unit that had none of it
            table = table.append_column("similarity", pa.array([0.25] * len(table)))
        pq.write_table(table, file, row_group_size=8)
    of_hub = pq.read_table(small_shards(dataset, tmp_path / "hf", "hf") / "data")
    assert {"title", "similarity"} <= set(of_hub.column_names)
    assert of_hub["similarity"].null_count == 20
    lines = (small_shards(dataset, tmp_path / "csv", "open_clip-csv") / "train.tsv").read_text().splitlines()
    assert lines[0].split("\t")[-2:] == ['"title.1"', '"similarity"']


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (90, 90))
from i2e_pipeline.commands.export import export
for form in ("webdataset", "hf", "open_clip-csv", "parquet"):
    print(export(sys.argv[1], f"{sys.argv[2]}/{form}", form, threads=4).images)
"""


def test_many_files_are_never_open_at_once(tmp_path: Path) -> None:
    rows = [odd_row(n) for n in range(300)]
    dataset = write_dataset(tmp_path / "i2e", rows, units=300)
    command = [sys.executable, "-c", MANY, dataset, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["300"] * 4
