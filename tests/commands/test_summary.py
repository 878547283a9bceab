"""What commands print fits 80 columns, and what programs read is JSON and nothing else."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline import cli, stages
from i2e_pipeline.commands import doctor, plan, summary
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import Config, PairsConfig
from i2e_pipeline.core.errors import ExitCode
from i2e_pipeline.core.rejects import reason_name
from i2e_pipeline.engine.pipeline import StageState
from i2e_pipeline.engine.records import Commit
from i2e_pipeline.engine.units import Gone, InputFile, Unit, Units
from tests.engine.toys import write_shard

WIDTH = 80


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def states() -> list[StageState]:
    """Every stage of the package over a large crawl, with all its reasons."""
    found = []
    for n, stage in enumerate(stages.stages()):
        rejected = dict.fromkeys(map(reason_name, stage.reasons), 12_345_678)
        commit = Commit(stage.name, "u-1", "f", {}, {}, 110_000_000, 98_765_432, rejected)
        found.append(StageState(stage, {"u-1": commit}, {"u-1": "new"} if n % 2 else {}, 12_345.6 if n % 2 else 0.0))
    return found


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_the_funnel_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: names of reasons that are broken in the middle, a number over two lines."""
    summary.print_funnel(states())
    said = lines(capsys)
    assert max(map(len, said)) <= WIDTH
    words = {word for line in said for word in line.split()}
    for state in states():
        assert {state.stage.name, *map(reason_name, state.stage.reasons)} <= words
    assert {"110,000,000", "98,765,432", "12,345,678", "12345.6", "before"} <= words


def test_the_table_of_quality_fits(capsys: pytest.CaptureFixture[str]) -> None:
    figures = [
        {"stage": stage, "slice": name, "pairs": 1_234_567, "precision": 0.9781, "recall": 0.9472, "counted": "labels"}
        for stage in ("link", "label", "published")
        for name in ("all", "colliding: yes", "hand: fluent-emoji-flat")
    ]
    summary.print_quality(figures)
    said = lines(capsys)
    assert max(map(len, said)) <= WIDTH
    assert sum(line.count("0.978") for line in said) == 9
    assert any("hand: fluent-emoji-flat" in line for line in said)


def test_labels_on_images_of_nothing_known_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """For all pairs alone; nothing is said where no image is known to show nothing."""
    figure = {"pairs": 511, "precision": 0.5, "recall": None, "counted": "labels"}
    none = {"right": 36, "wrong": 41, "undecided": 3, "none": 455, "none_labelled": 40, "wrong_on_none": 41}
    summary.print_quality(
        [
            {"stage": "link", "slice": "all"} | figure,
            {"stage": "label", "slice": "all", "calibration_error": 0.0314} | figure | none,
            {"stage": "label", "slice": "hand: a"} | figure | none | {"none": 7},
            {"stage": "link", "slice": "hand: a"} | figure,
        ]
    )
    said = [line.strip() for line in lines(capsys)]
    assert "label: labels on images of nothing known: 40 of 455 images (41 labels)" in said
    assert sum("nothing known" in line for line in said) == 1
    assert any("not counted: 3" in line for line in said)
    assert any("calibration error" in line and line.endswith("0.031") for line in said)
    summary.print_quality([{"stage": "label", "slice": "all"} | figure | dict.fromkeys(none, 0)])
    assert "nothing known" not in "".join(lines(capsys))


def test_status_fits_and_wraps_its_reasons_alone(capsys: pytest.CaptureFixture[str]) -> None:
    units = [Unit("u-1", (InputFile(0, "a.parquet", 1, 0, "d", 1_000_000),))]
    found = states()
    found[1].to_do["u-1"] = "changed: score.text_template is now {name}; link.max_candidates was 8, now 12; a path"
    summary.print_status("s3://key:wJalrXUtnFEMI@bucket/out", units, found)
    said = lines(capsys)
    assert max(map(len, said)) <= WIDTH
    assert "wJalrXUtnFEMI" not in "\n".join(said)
    assert {s.stage.name for s in found} <= {word for line in said for word in line.split()}


def test_the_plan_fits(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    summary.print_plan(plan.plan(parser.parse_args(["--pairs", "8.4e9", "--gpus", "256", "--cores", "4096"])))
    said = lines(capsys)
    assert max(map(len, said)) <= WIDTH
    assert any(line.startswith("entity_vectors") and line.endswith("text_tower") for line in said)


def test_a_training_fits(capsys: pytest.CaptureFixture[str]) -> None:
    figures = dict.fromkeys(("mAP", "knn", "zero_shot"), 0.5)
    summary.print_training(
        {
            "recipe": "multi_task",
            "steps": 1000,
            "after": figures,
            "before": figures,
            "skipped": {},
            "export": "e",
            "folder": "f",
        }
    )
    assert max(map(len, lines(capsys))) <= WIDTH


# For programs


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "in" / "a.parquet", 1, 2)
    file = tmp_path / "c.yaml"
    file.write_text(
        "output: out\npairs: {path: in/*.parquet}\nknowledge_base: {dump: in}\nscore: {model: ViT-B-32@x}\n"
    )
    return str(file)


@pytest.mark.parametrize("form", [["--json"], ["--json", "-"]])
def test_status_as_json_is_all_of_stdout(settings: str, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("status", "--config", settings, *form) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["output"], tree["units"]) == ("out", 1)
    assert [s["stage"] for s in tree["stages"]] == [s.name for s in stages.stages()]
    assert tree["stages"][0] == {"stage": "knowledge_base", "done": 0, "to_do": 1, "why": {"new": 1}}


def test_status_names_input_files_that_are_gone_or_have_changed(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: a file that is missed only when the dataset is published, and a status that ends at a changed file."""
    places = {name: tmp_path / "in" / f"{name}.parquet" for name in "abcde"}
    for n, place in enumerate(places.values()):
        write_shard(place, 10 * n, 10 * n + 2)
    units = {u.files[0].path: u.name for u in Units("out").plan(PairsConfig(path=("in/*.parquet",)))}
    assert call("status", "--config", settings, "--json") == 0
    assert json.loads(capsys.readouterr().out)["gone"] == []
    places["b"].unlink()
    places["c"].write_bytes(places["c"].read_bytes() + b"more")
    write_shard(places["d"], 31, 33)
    places["e"].rename(tmp_path / "in" / "moved.parquet")
    wanted = [
        {"unit": units[f"in/{name}.parquet"], "path": f"in/{name}.parquet", "what": what}
        for name, what in (("b", "is gone"), ("c", "has changed"), ("d", "has changed"))
    ]
    assert call("status", "--config", settings, "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["gone"], tree["units"]) == (wanted, 5)
    assert call("status", "--config", settings) == 0
    said = capsys.readouterr().out
    assert "3 input files" in said
    assert f"--forget {units['in/b.parquet']}" in " ".join(said.split())
    for one in wanted:
        assert f"  {one['unit']}  {one['path']} {one['what']}\n" in said
    assert not Units("out").known()[-1].files[0].path.endswith("moved.parquet"), "a look registers nothing"


def test_of_many_files_that_are_gone_status_names_ten(capsys: pytest.CaptureFixture[str]) -> None:
    gone = [Gone(f"u-{n}", f"/data/{n}.parquet", "is gone") for n in range(12_345)]
    summary.print_status("out", [], [], gone)
    said = lines(capsys)
    assert max(map(len, said)) <= WIDTH
    assert sum("is gone" in line for line in said) == 10
    assert said[-1] == "  and 12,335 more; --json names all"


def test_status_as_json_may_go_to_a_file(settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("status", "--config", settings, "--json", "s.json") == 0
    assert json.loads((tmp_path / "s.json").read_text())["units"] == 1
    assert "knowledge_base" in capsys.readouterr().out, "the table is for the one who looks"


def test_plan_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--pairs", "8.4e9", "--gpus", "256", "--cores", "4096"]
    assert call(*asked, "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert call(*asked, "--json", str(tmp_path / "p.json")) == 0
    assert json.loads((tmp_path / "p.json").read_text()) == tree
    assert tree["request"]["pairs"] == 8_400_000_000


def test_doctor_as_json(settings: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def checks(config: Config) -> list[tuple[str, Any]]:
        def fails() -> str:
            raise doctor.Failed("mend it, password=wJalrXUtnFEMI")

        return [("fine", lambda: "as it is"), ("wrong", fails)]

    monkeypatch.setattr(doctor, "checks", checks)
    assert call("doctor", "--config", settings, "--json") == ExitCode.FAULT
    tree = json.loads(capsys.readouterr().out)
    assert tree == {
        "ok": False,
        "checks": [
            {"name": "fine", "state": "ok", "said": "as it is"},
            {"name": "wrong", "state": "FAILED", "said": "mend it, password=***"},
        ],
    }
    assert call("doctor", "--config", settings) == ExitCode.FAULT
    assert "FAILED  wrong          mend it, password=***" in capsys.readouterr().out


# What a run says of itself


def test_help_says_what_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    for code in ExitCode:
        assert f" {code.value} {code.about}" in said
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("i2e ")


def test_the_whole_config_is_kept_beside_the_output_without_secrets(tmp_path: Path) -> None:
    made = configuration.load(None, [f"output={tmp_path}/out", "session.conf.fs.s3a.secret.key=wJalrXUtnFEMI"])
    configuration.keep(made, made.output)
    kept = (tmp_path / "out" / "config.yaml").read_text()
    assert "wJalrXUtnFEMI" not in kept
    again = configuration.load(str(tmp_path / "out" / "config.yaml"))
    assert again.model_copy(update={"session": made.session}) == made
    configuration.keep(configuration.load(None, ["score.batch_size=9"]), made.output)
    assert "batch_size: 9" in (tmp_path / "out" / "config.yaml").read_text()


def test_a_config_of_the_users_in_the_output_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a run that writes over the very file it was started with."""
    (tmp_path / "config.yaml").write_text("# mine\n")
    configuration.keep(Config(), str(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == "# mine\n"
    assert "is not ours and stays" in caplog.text


def test_figures_of_a_text_are_not_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: rich's highlighter, which takes words and figures of a sentence for code."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdout", out := io.StringIO())
    summary._console().print("12 cores, None of 'them' at http://x")
    assert out.getvalue() == "12 cores, None of 'them' at http://x\n"
