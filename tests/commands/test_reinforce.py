"""`i2e reinforce`: a file is whole or not there, what is there is not made again, and other settings are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from i2e_pipeline import cli
from i2e_pipeline.commands import reinforcing as command
from i2e_pipeline.commands.reinforcing import ReinforceError, Wanted, reinforce
from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, DataConfig
from i2e_pipeline.dataset.published import DatasetError, open_published
from i2e_pipeline.train.reinforced import MANIFEST, SETTINGS, open_reinforced
from i2e_pipeline.train.reinforcing import Made, Models, Piece, Settings, TeacherConfig, here
from tests.train.small_dataset import entity_row, image_row, write_dataset

TEMPLATE = "{name}, {description}"


@pytest.fixture(scope="module")
def teacher(models: Callable[[str], str]) -> TeacherConfig:
    return TeacherConfig(model=models("vit"), device="cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Four units of six rows each, one of which is broken."""
    rows = [image_row(i, **({"bytes": b"x"} if i == 5 else {})) for i in range(24)]
    return write_dataset(tmp_path / "out" / "i2e", rows, units=4, group=4)


def wanted(teacher: TeacherConfig, augmentations: int = 2, template: str = TEMPLATE) -> Wanted:
    return Wanted(Models((teacher,)), augmentations, DataConfig(), template)


def tables(dataset: str) -> dict[str, bytes]:
    folder = Path(dataset).parent / "reinforced"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


class Killed(BaseException):
    pass


def killed_after(pieces: int) -> Callable[..., Iterator[Made]]:
    def runner(to_do: Sequence[Piece], settings: Settings, models: Models) -> Iterator[Made]:
        for number, piece in enumerate(to_do):
            if number == pieces:
                raise Killed
            yield piece.make(settings, models)

    return runner


def test_a_row_stands_where_its_image_stands(dataset: str, teacher: TeacherConfig) -> None:
    done = reinforce(dataset, wanted(teacher))
    assert (done.images, done.files, done.made, done.undecodable) == (24, 5, 5, {"not_an_image": 1})
    assert done.bytes == sum(map(len, tables(dataset).values()))
    assert done.vector_bytes == 2 * 24 * 3
    published, folder = open_published(dataset), Path(done.folder)
    assert folder == Path(dataset).parent / "reinforced"
    manifest = json.loads((folder / MANIFEST).read_text())
    for file, target in zip(published.files, manifest["images"], strict=True):
        images = pq.ParquetFile(f"{dataset}/{file.path}")
        beside = pq.ParquetFile(folder / target)
        assert target.startswith(file.path.split("/")[1])
        groups = [[f.metadata.row_group(g).num_rows for g in range(f.num_row_groups)] for f in (images, beside)]
        assert groups[0] == groups[1] == [4, 2]
        ids = [f.read(["image_id"]).column(0).to_pylist() for f in (images, beside)]
        assert ids[0] == ids[1]
    assert (manifest["rows"], manifest["undecodable"]) == (24, {"not_an_image": 1})
    assert manifest["settings"] == json.loads((folder / SETTINGS).read_text())


@pytest.mark.parametrize("pieces", [0, 1, 3, 4])
def test_after_a_kill_what_is_whole_is_not_made_again(
    tmp_path: Path, dataset: str, teacher: TeacherConfig, pieces: int
) -> None:
    """Catches: a dataset that counts as reinforced before it is; a unit that is made twice, or in part."""
    with pytest.raises(Killed):
        reinforce(dataset, wanted(teacher), runner=killed_after(pieces))
    left = tables(dataset)
    assert len(left) == pieces
    with pytest.raises(DatasetError, match=r"holds no reinforced tables \(manifest\.json is not there\)"):
        open_reinforced(Config().train.reinforce, open_published(dataset))
    done = reinforce(dataset, wanted(teacher))
    assert (done.files, done.made) == (5, 5 - pieces)
    assert done.undecodable == {"not_an_image": 1}
    found = tables(dataset)
    assert left.items() <= found.items()
    shutil.move(Path(dataset).parent / "reinforced", tmp_path / "moved")
    reinforce(dataset, wanted(teacher))
    assert tables(dataset) == found


def test_a_kill_within_a_file_leaves_none(
    dataset: str, teacher: TeacherConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pq.ParquetWriter.write_table

    def killing(writer: Any, table: Any, *arguments: Any, **options: Any) -> None:
        write(writer, table, *arguments, **options)
        if "image_vectors" in table.column_names:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_table", killing)
        with pytest.raises(Killed):
            reinforce(dataset, wanted(teacher))
    assert [name.split("/")[0] for name in tables(dataset)] == ["entities"]
    assert reinforce(dataset, wanted(teacher)).made == 4


@pytest.mark.slow
def test_kill_9_leaves_whole_files_and_the_same_command_goes_on(dataset: str, teacher: TeacherConfig) -> None:
    """The process dies as the third file is about to get its name; what it had written of it is swept away."""
    script = (
        "import os, sys, signal\n"
        "from i2e_pipeline.core import files\n"
        "from i2e_pipeline.cli import main\n"
        "replace, count = os.replace, [0]\n"
        "def dying(*a, **k):\n"
        "    count[0] += str(a[1]).endswith('.parquet')\n"
        "    if count[0] == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return replace(*a, **k)\n"
        "os.replace = dying\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["reinforce", dataset, "--teacher", teacher.model, "--augmentations", "2", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    folder = f"{Path(dataset).parent}/reinforced"
    assert len(tables(dataset)) - len(files.left_unfinished(folder)) == 2
    whole = {name: content for name, content in tables(dataset).items() if not files.is_hidden(name)}
    done = reinforce(dataset, wanted(teacher))
    assert done.made == 3
    assert not files.left_unfinished(folder)
    assert whole.items() <= tables(dataset).items()


def test_of_a_dataset_that_grew_only_new_units_are_made(tmp_path: Path, dataset: str, teacher: TeacherConfig) -> None:
    """Catches: growth that does everything again, or a table of a unit that is gone and still lies there."""
    reinforce(dataset, wanted(teacher))
    before = tables(dataset)
    rows = [image_row(i, **({"bytes": b"x"} if i == 5 else {})) for i in range(24)]
    more = [image_row(i) for i in range(100, 106)]
    grown = write_dataset(tmp_path / "grown" / "i2e", rows, units=4, group=4)
    place = Path(write_dataset(tmp_path / "more" / "i2e", more, units=1, group=4)) / "images" / "unit=u-000000000000"
    shutil.move(place, f"{grown}/images/unit=u-00000000000f")
    manifest = json.loads(Path(f"{grown}/manifest.json").read_text())
    manifest["units"]["u-00000000000f"] = 6
    del manifest["units"]["u-000000000001"]  # and one unit was left out
    files.write_json(f"{grown}/manifest.json", manifest)
    shutil.rmtree(dataset)
    shutil.move(grown, dataset)

    with pytest.raises(DatasetError, match=r"1 of the 4 files of .* \(units u-00000000000f\).*i2e reinforce"):
        open_reinforced(Config().train.reinforce, open_published(dataset))
    done = reinforce(dataset, wanted(teacher))
    assert (done.made, done.files) == (1, 5)
    after = tables(dataset)
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"unit=u-00000000000f"}
    assert {name.split("/")[0] for name in before.keys() - after.keys()} == {"unit=u-000000000001"}
    assert all(after[name] == before[name] for name in before.keys() & after.keys())


def test_an_entity_that_is_told_otherwise_has_new_vectors(tmp_path: Path, dataset: str, teacher: TeacherConfig) -> None:
    reinforce(dataset, wanted(teacher))
    rows = [image_row(i, **({"bytes": b"x"} if i == 5 else {})) for i in range(24)]
    entities = [entity_row(c, **({"name": "another"} if c == 2 else {})) for c in range(4)]
    other = write_dataset(tmp_path / "other" / "i2e", rows, units=4, group=4, entities=entities)
    shutil.rmtree(dataset)
    shutil.move(other, dataset)
    with pytest.raises(DatasetError, match=r"texts of entities of .* have changed since"):
        open_reinforced(Config().train.reinforce, open_published(dataset))
    assert reinforce(dataset, wanted(teacher)).made == 1
    open_reinforced(Config().train.reinforce, open_published(dataset))


def test_other_settings_are_refused_and_begin_anew_by_restart(
    tmp_path: Path, dataset: str, teacher: TeacherConfig, models: Callable[[str], str]
) -> None:
    reinforce(dataset, wanted(teacher))
    before = tables(dataset)
    other = TeacherConfig(model=models("resnet"), device="cpu")
    for asked, said in (
        (wanted(teacher, 3), r"augmentations: 3, and there 2"),
        (wanted(other), r"teachers: local-dir:\S+resnet\S* \(\w{8}\), and there local-dir:\S+ \(\w{8}\)"),
        (wanted(teacher, template="{name}: {description}"), "template: "),
    ):
        with pytest.raises(ReinforceError, match=rf"begun with other settings: .*{said}.*--restart"):
            reinforce(dataset, asked)
    assert tables(dataset) == before
    shutil.copytree(teacher.model.removeprefix("local-dir:"), tmp_path / "copy")
    moved = TeacherConfig(model=f"local-dir:{tmp_path}/copy", device="cpu")
    assert reinforce(dataset, wanted(moved)).made == 0  # the same weights, wherever they lie
    again = reinforce(dataset, wanted(teacher, 3), restart=True)
    assert again.made == 5
    assert not tables(dataset).keys() & {name for name in before if name.startswith("unit=")}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, dataset: str, teacher: TeacherConfig) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for restart in (False, True):
        with pytest.raises(ReinforceError, match=r"mine holds notes\.txt and no settings\.json"):
            reinforce(dataset, wanted(teacher), str(tmp_path / "mine"), restart=restart)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "x"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["reinforce", *arguments])
    code: int = ended.value.code
    return code


def test_the_command_reinforces_an_output_and_says_what_it_takes(
    dataset: str, teacher: TeacherConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(Path(dataset).parent)
    arguments = [output, "--teacher", teacher.model, "--augmentations", "2", "--device", "cpu"]
    assert call(*arguments, "--json", str(tmp_path / "told.json")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "24 images in 5 files, 5 of them new" in said
    assert "144 bytes of vectors an image before compression" in said
    assert "could not be decoded: 1 images not_an_image" in said
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["made"], told["vector_bytes_per_image"]) == (5, 144)
    assert call(*arguments, "--to", str(tmp_path / "elsewhere")) == 0
    elsewhere = {p.name: p.read_bytes() for p in (tmp_path / "elsewhere").rglob("*.parquet")}
    assert elsewhere == {Path(name).name: content for name, content in tables(dataset).items()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--teacher", "ViT-B-33@x"], "teacher.model=ViT-B-33: open_clip knows no such architecture"),
        (["--teacher", "TEACHER", "--teacher", "TEACHER"], "--teacher names one model twice"),
        (["--teacher", "TEACHER", "--set", "train.data.augment=none"], "all of them are the same: ask for 1"),
        (["--teacher", "TEACHER", "--captioner", "local-dir:/nowhere"], "/nowhere/config.json does not exist"),
        (["--teacher", "TEACHER", "--augmentations", "0"], "'0' is no whole number above 0"),
        ([], "the following arguments are required: --teacher"),
    ],
)
def test_a_mistake_is_said_before_any_work(
    dataset: str, teacher: TeacherConfig, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [teacher.model if word == "TEACHER" else word for word in arguments]
    assert call(dataset, *named) == 2
    assert said in capsys.readouterr().err
    assert not (Path(dataset).parent / "reinforced").exists()


def test_workers_make_what_one_process_makes(dataset: str, teacher: TeacherConfig, spark: Any, tmp_path: Path) -> None:
    """Catches: tables that depend on who made them, or work that Spark does twice."""
    reinforce(dataset, wanted(teacher))
    alone = tables(dataset)
    shutil.move(Path(dataset).parent / "reinforced", tmp_path / "alone")
    with pytest.raises(Killed):
        reinforce(dataset, wanted(teacher), runner=killed_after(2))
    config = Config(output=str(tmp_path / "out"))
    done = command.on_workers_of(config, dataset, wanted(teacher), None, restart=False)
    assert done.made == 3
    assert tables(dataset) == alone


def test_the_job_is_the_command_on_spark(
    dataset: str,
    teacher: TeacherConfig,
    spark: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import runpy

    job = Path(__file__).parents[2] / "jobs" / "reinforce.py"
    monkeypatch.setattr(sys, "argv", [str(job), dataset, "--teacher", teacher.model, "--augmentations", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(job), run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err
    assert len(tables(dataset)) == 5


def test_a_source_that_cannot_be_read_is_said_with_its_file(dataset: str, teacher: TeacherConfig) -> None:
    broken = open_published(dataset).files[1].path
    place = Path(dataset) / broken
    content = place.read_bytes()
    place.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])  # the footer stays
    with pytest.raises(DatasetError, match=broken):
        reinforce(dataset, wanted(teacher), runner=here)
    assert len(tables(dataset)) == 2
