"""Settings as users write them: what a scalar is depends on the setting, and nothing is dropped without a word."""

from __future__ import annotations

import os
import sys
import threading
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
        ("train:\n  data:\n    workers: 1\n    lanes: 2\n    workers: 3\n", "`workers` stands in line 3 and again in"),
        ("train:\n  encoder: {model: a}\n  data: {}\n  encoder: {model: b}\n", "`encoder` stands in line 2 and again"),
        ("select: {<<: {min_images_per_entity: 2},\n  <<: {min_images_per_entity: 3}}\n", "`<<` stands in line 1"),
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
    ("text", "place", "says"),
    [
        ("score:\n\tbatch_size: 8\n", ", line 2: this is not YAML (", "): blanks indent and part there, and no tabs"),
        ("score:\n  batch_size:\t8\n", ", line 2", "blanks indent and part there, and no tabs"),
        ("output: @x\n", ", line 1", "put a text that begins with such a sign in quotes"),
        ("pairs: {path: *.parquet}\n", ", line 1", "put a text that begins with * in quotes"),
        ("select: {<<: *none}\n", ", line 1", "undefined alias 'none'"),
        ("output: a: b\n", ", line 1", "put a text with a colon and a blank in quotes"),
        ('output: "x\n', ", line 2", "a quotation mark is not closed"),
        ("output: 'it's'\n", ", line 1", "put a text that holds quotation marks in those of the other kind"),
        ("output: x\n---\noutput: y\n", ", line 2", "keep the settings of one run"),
        ("output: !x y\n", ", line 1", "put a text of such signs in quotes"),
        ("output: !!python/object:os.system x\n", ", line 1", "put a text of such signs in quotes"),
        ("pairs:\n  path: [a, b/[0-9].parquet]\n", ", line 2", "put a text with brackets or commas in quotes"),
        ("output: x\nscore: caf\udce9\n", ", line 2", "byte 0xe9 is no UTF-8: save the file as UTF-8"),
        ("evaluate: {data: &a {b: *a}}\n", "", "an anchor (&) holds itself"),
        ("pairs: {path: &a [*a]}\n", "", "an anchor (&) holds itself"),
        ("output = x\n", "", "must hold sections of settings (`score:` and below it"),
        ("5\n", "", "not '5'"),
        ("- a\n", "", "not a list"),
        ("pairs: !!map x\n", ", line 1", "a mapping is said to stand here"),
        ("pairs: {path: " + "[" * 5000 + "\n", "", "too deep in one another"),
        ("a0: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)), "",
         "its anchors (&, *) make more than 100,000 values"),
        ("a: [&a0 [x, x]" + "".join(f", &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)) + "]\n", "",
         "its anchors (&, *) make more than 100,000 values"),
        ("score.batch_size: 4\n", "", "; in a file write it as `score: {batch_size: …}`"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_said_in_one_line_with_its_number_and_a_remedy(
    tmp_path: Path, text: str, place: str, says: str
) -> None:
    (tmp_path / "c.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as error:
        config.load(str(tmp_path / "c.yaml"))
    said = str(error.value)
    assert f"c.yaml{place}" in said
    assert says in said
    assert "\n" not in said


def test_anchors_merge_and_may_be_used_again(tmp_path: Path) -> None:
    made = written(
        tmp_path,
        "evaluate: &e {batch_size: 8, device: cpu}\nscore: {<<: *e, device: auto}\n"
        "select: {<<: [{min_images_per_entity: 2}, {min_images_per_entity: 4, max_images_per_entity: 9}]}\n",
    )
    assert (made.score.batch_size, made.score.device, made.evaluate.batch_size) == (8, "auto", 8)
    assert (made.select.min_images_per_entity, made.select.max_images_per_entity) == (2, 9)


def test_a_section_without_a_line_has_its_defaults(tmp_path: Path) -> None:
    """Catches: a section of which every line is commented out, and that is then "no valid dictionary"."""
    made = written(tmp_path, "score:\n  # batch_size: 8\ntrain:\n  encoder:\nselect: null\n", "label=null")
    assert made == Config()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e6", 1_000_000),
        ("1.5E3", 1500),
        ("1_000", 1000),
        ("0o17", 15),
        ("017", 17),
        ("08", 8),
        ("0x1F", 31),
        ("'9'", 9),
    ],
)
def test_a_whole_number_is_what_it_looks_like(tmp_path: Path, text: str, number: int) -> None:
    """Catches: 017 as 15, and 1e6 as a text."""
    assert written(tmp_path, f"run: {{wave_rows: {text}}}\n").run.wave_rows == number
    assert config.load(None, [f"run.wave_rows={text}"]).run.wave_rows == number
    if text != "0o17":
        assert written(tmp_path, f"run: {{wave_gb: {text}}}\n").run.wave_gb == number


@pytest.mark.parametrize(
    "value",
    [
        "/data/run #1",
        "a: b",
        "'quoted'",
        '"q"',
        "{x}",
        "[a",
        "# no comment",
        "no",
        "1e3",
        "0x10",
        "- a",
        "a=b",
        "a\nb",
        "2026-01-02",
        "12:30",
        "0o17",
        "a=b=c",
        "&a",
        "*a",
        "<<",
        "=",
        "on",
        "'a",
        '"a',
        "%a",
        "a # b",
    ],
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


@pytest.mark.parametrize("override", ["pairs.path=[a, b", "evaluate.models={a, b", "evaluate.knn_k=[1, 2"])
def test_a_bracket_that_is_not_closed_is_refused(override: str) -> None:
    """Catches: a path called "[a, b", of which nobody finds a file."""
    with pytest.raises(config.ConfigError, match="a bracket is not closed: end the list with"):
        config.load(None, [override])


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("knowledge_base.languages=no", "knowledge_base.languages", ("no",)),
        ("knowledge_base.languages=en", "knowledge_base.languages", ("en",)),
        ("knowledge_base.skip=category", "knowledge_base.skip", ("category",)),
        ("evaluate.knn_k=10", "evaluate.knn_k", (10,)),
        ("pairs.path=0123", "pairs.path", ("0123",)),
    ],
)
def test_one_value_is_a_list_of_one(override: str, path: str, value: tuple[object, ...], tmp_path: Path) -> None:
    section, key = path.split(".")
    assert getattr(getattr(config.load(None, [override]), section), key) == value
    file = tmp_path / "c.yaml"
    file.write_text(f"{section}:\n  {key}: {override.partition('=')[2]}\n")
    assert getattr(getattr(config.load(str(file)), section), key) == value


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("output=ftp://h/x", "output: ftp:// is no store that is known"),
        ("output=https://h/x", "output: https:// is no store that is known"),
        ("pairs.path=S3://b/x", "pairs.path.*: S3:// is not known: write it in small letters, s3://"),
        ("train.folder=GS://b/x", "train.folder: GS:// is not known: write it in small letters, gs://"),
        ("output=~nobody-of-this-name/i2e", "output: ~nobody-of-this-name/i2e: there is no user nobody-of-this-name"),
    ],
)
def test_a_place_that_no_client_opens_is_refused_with_its_setting(override: str, says: str) -> None:
    with pytest.raises(config.ConfigError, match=says):
        config.load(None, [override])


def test_settings_are_read_from_a_pipe(tmp_path: Path) -> None:
    """Catches: `--config <(…)` and /dev/stdin are said to be no files."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("output: piped\n"), daemon=True)
    writer.start()
    assert config.load(str(pipe)).output == "piped"
    with pytest.raises(config.ConfigError, match=r"--config .* is a folder: name the YAML file in it"):
        config.load(str(tmp_path))


@pytest.mark.parametrize("written", ["0x_", "0b_", "+0b__", "9" * 5000, "-" + "9" * 5000])
def test_what_only_looks_like_a_number_is_text(tmp_path: Path, written: str) -> None:
    """Catches: int()'s own error, which no line of the file explains."""
    (tmp_path / "c.yaml").write_text(f"output: {written}\n")
    assert config.load(str(tmp_path / "c.yaml")).output == written
    (tmp_path / "c.yaml").write_text(f"score: {{batch_size: {written}}}\n")
    with pytest.raises(ConfigError, match=r"score\.batch_size"):
        config.load(str(tmp_path / "c.yaml"))


def test_anchors_may_be_used_a_thousand_times(tmp_path: Path) -> None:
    """Catches: a bound on what is written out that real configs reach."""
    many = ", ".join(["*one"] * 1000)
    (tmp_path / "c.yaml").write_text(f"pairs: {{path: [&one a, {many}]}}\n")
    assert len(config.load(str(tmp_path / "c.yaml")).pairs.path) == 1001
