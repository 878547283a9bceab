"""Settings as users write them: what a scalar is depends on the setting, and nothing is dropped without a word."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from i2e_pipeline import stages
from i2e_pipeline.core import config
from i2e_pipeline.core.config import Config, ConfigError


def written(tmp_path: Path, text: str, *overrides: str) -> Config:
    (tmp_path / "c.yaml").write_text(text)
    return config.load(str(tmp_path / "c.yaml"), overrides)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pairs: {path: a}\nscore: {}\npairs:\n  text_column: x\n", "`pairs` stands in line 1 and again in line 3"),
        ("score:\n  batch_size: 8\n  model: m\n  batch_size: 9\n", "`batch_size` stands in line 2 and again in line 4"),
        ("session:\n  conf: {a.b: 1, a.b: 2}\n", "`a.b` stands in line 2 and again in line 2"),
    ],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path, text: str, says: str) -> None:
    """Catches: YAML keeps the last of two sections, and the settings of the first are gone."""
    with pytest.raises(ConfigError, match=r"c\.yaml: ") as error:
        written(tmp_path, text)
    assert says in str(error.value)


def test_a_key_of_a_merged_mapping_may_be_set_again(tmp_path: Path) -> None:
    made = written(tmp_path, "select: {<<: {min_images_per_entity: 2}, min_images_per_entity: 3}\n")
    assert made.select.min_images_per_entity == 3


@pytest.mark.parametrize(
    "value", ["/data/run #1", "a: b", "'quoted'", '"q"', "{x}", "[a", "# no comment", "no", "1e3", "0x10", "- a", "a=b"]
)
def test_a_text_of_the_command_line_is_taken_whole(value: str) -> None:
    assert config.load(None, [f"output={value}"]).output == value
    assert config.load(None, [f"score.text_template={value}"]).score.text_template == value
    assert config.load(None, [f"pairs.path={value}"]).pairs.path == (value,)


def test_what_is_no_text_is_yaml_on_the_command_line() -> None:
    made = config.load(
        None,
        [
            "pairs.path=[a, 'b #1']", "score.batch_size=8", "select.max_images_per_entity=null",
            "pairs.key_column=null",
            "train.data.crop_area=[0.5, 1]", "evaluate.data={a: b, 1: 2}", "train.optimizer.learning_rate=1e-3",
            "extract.gazetteer=no",
        ],
    )  # fmt: skip
    assert made.pairs.path == ("a", "b #1")
    assert (made.pairs.key_column, made.select.max_images_per_entity, made.score.batch_size) == (None, None, 8)
    assert made.train.data.crop_area == (0.5, 1.0)
    assert made.evaluate.data == {"a": "b", "1": "2"}
    assert made.train.optimizer.learning_rate == 1e-3
    assert made.extract.gazetteer is False


def test_a_scalar_is_text_where_text_is_wanted(tmp_path: Path) -> None:
    """Catches: Norwegian as False, a column named 2024, a Spark property that is a number."""
    made = written(
        tmp_path,
        "output: 2024-01-02\n"
        "pairs: {path: [1, 2.50, yes], text_column: 2024, key_column: null}\n"
        "knowledge_base: {languages: [no, on, en]}\n"
        "extract: {gazetteer: no}\n"
        "session: {conf: {on: true, a.b: 4, c: 0x10, d: 1_000}}\n",
        "knowledge_base.max_candidates=30",
    )
    assert made.output == "2024-01-02"
    assert made.pairs.path == ("1", "2.50", "yes")
    assert (made.pairs.text_column, made.pairs.key_column) == ("2024", None)
    assert made.knowledge_base.languages == ("no", "on", "en")
    assert made.extract.gazetteer is False
    assert made.session.conf == {"on": "true", "a.b": "4", "c": "0x10", "d": "1_000"}
    assert config.load(None, ["knowledge_base.languages=[no]"]).knowledge_base.languages == ("no",)
    assert config.from_tree({"session": {"conf": {"a": 4, "b": True}}}, "a test").session.conf == {
        "a": "4",
        "b": "true",
    }


def test_a_key_that_holds_dots_is_set_by_its_name(tmp_path: Path) -> None:
    """Catches: `spark.speculation` and `spark.speculation.multiplier`, of which one is no section of the other."""
    made = written(
        tmp_path,
        "session: {conf: {a.b: 3, spark.speculation: true}}\n",
        "session.conf.a.b=4",
        "session.conf.spark.speculation.multiplier=2",
        "evaluate.data.my.set=/d",
    )
    assert made.session.conf == {"a.b": "4", "spark.speculation": "true", "spark.speculation.multiplier": "2"}
    assert made.evaluate.data == {"my.set": "/d"}


def test_home_is_expanded_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a folder named `~` beside the data."""
    monkeypatch.setenv("HOME", "/h")
    made = written(
        tmp_path,
        "output: ~/i2e\nstages: [~/mine.py:Mine]\n",
        *(
            "pairs.path=[~/a, s3://b/~/c]",
            "session.jars=~/jars",
            "session.shared_folders=~/s",
            "knowledge_base.dump=~/d",
        ),
        *("extract.recognizer=~/ner", "score.model=local-dir:~/m", "label.calibration=~/c", "link.weights=~/w"),
        *("train.encoder.model=ViT-B-32@~/w.pt", "train.dataset=~/t", "train.folder=~/f", "train.loss.teacher=~/v"),
        *("evaluate.data={gpr1200: ~/g}", "evaluate.folder=~/e"),
    )
    assert made.output == "/h/i2e"
    assert made.pairs.path == ("/h/a", "s3://b/~/c")
    assert (made.session.jars, made.session.shared_folders, made.knowledge_base.dump) == ("/h/jars", ("/h/s",), "/h/d")
    assert (made.extract.recognizer, made.score.model) == ("/h/ner", "local-dir:/h/m")
    assert (made.label.calibration, made.link.weights) == ("/h/c", "/h/w")
    assert (made.train.encoder.pretrained, made.train.dataset, made.train.folder) == ("/h/w.pt", "/h/t", "/h/f")
    assert (made.train.loss.teacher, made.evaluate.data, made.evaluate.folder) == ("/h/v", {"gpr1200": "/h/g"}, "/h/e")


STAGE = '''
from typing import Annotated

from i2e_pipeline import Content, Section, Stage


class Mine(Stage):
    name, does, rows_are, after, reads, narrows = "mine", "leave pairs out", "pairs", ("score",), ("scores",), "scores"
    key = ("pair_id",)
    reasons = {"x": "It is x."}

    class Settings(Section):
        words: tuple[str, ...] = ()
        """Texts."""
        table: dict[str, str] = {}
        """Texts by name."""
        share: float = 0.5
        """A number."""
        list: Annotated[str | None, Content()] = None
        """A file."""
        api_token: str = ""
        """A secret."""
'''


def test_settings_of_a_stage_from_outside_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    pytest.importorskip("pyspark")
    (tmp_path / "mine.py").write_text(STAGE)
    (tmp_path / "c.yaml").write_text(f"stages: [{tmp_path}/mine.py:Mine]\nmine: {{words: [no, 4], table: {{a: 1}}}}\n")
    made = stages.load(
        str(tmp_path / "c.yaml"), ["mine.share=0.25", "mine.list=~/l", "mine.api_token=a #1", "mine.table={b: no}"]
    )
    mine = made.mine  # type: ignore[attr-defined]
    assert (mine.words, mine.table, mine.share) == (("no", "4"), {"b": "no"}, 0.25)
    assert (mine.list, mine.api_token) == ("/h/l", "a #1")
    assert config.differing(made)["mine"] == {
        "words": ["no", "4"], "table": {"b": "no"}, "share": 0.25, "list": "/h/l", "api_token": "***",
    }  # fmt: skip
    sys.modules.pop("mine", None)


def test_what_differs_from_the_defaults_is_all_that_is_shown() -> None:
    assert config.differing(Config()) == {}
    made = config.load(None, ["score.batch_size=65", "output=x", "train.loss.teacher=t"])
    assert config.differing(made) == {"output": "x", "score": {"batch_size": 65}, "train": {"loss": {"teacher": "t"}}}


def test_a_config_may_lie_in_a_store(tmp_path: Path) -> None:
    (tmp_path / "a b.yaml").write_text("output: out/x\n")
    assert config.load(f"file://{tmp_path}/a b.yaml").output == "out/x"
    with pytest.raises(ConfigError, match=r"--config nowhere://x/a\.yaml cannot be read"):
        config.load("nowhere://x/a.yaml")
