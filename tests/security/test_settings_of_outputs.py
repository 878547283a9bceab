"""The settings that an output keeps are data: whoever looks into somebody else's output runs none of its code, and asks
no server that it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

import i2e_pipeline
from i2e_pipeline import cli, stages
from i2e_pipeline.core import config as configuration
from i2e_pipeline.core.config import Config, ConfigError, keep
from i2e_pipeline.core.settings import SettingsError
from i2e_pipeline.sample import embedded

REACHING: dict[str, list[Any]] = {
    "stages": [["evil.py:Evil"], "evil.py:Evil", ["os:system"]],
    "session.master": ["spark://elsewhere:7077", "yarn", "k8s://elsewhere", "local-cluster[1,1,1024]", "local[1];x"],
    "session.jars": ["jars"],
    "session.driver_memory": ["1g -javaagent:evil.jar"],
    "session.conf.spark.jars": ["evil.jar"],
    "session.conf.spark.plugins": ["evil.Plugin"],
    "session.conf.spark.driver.extraJavaOptions": ["-javaagent:evil.jar"],
    "session.conf.spark.sql.shuffle.partitions": ["evil.Class"],
    "session.conf.spark.acls.enable": ["false"],
    "session.gpu_executor.discovery": ["evil.sh"],
    "session.gpu_executor.memory": ["1g -javaagent:evil.jar"],
    "session.gpu_executor.overhead": ["x"],
    "storage.options.s3.endpoint": ["http://elsewhere:9000"],
    "storage.options.s3.region": ["elsewhere"],
    "storage.options.gs.service_account_file": ["/key.json"],
    "extract.recognizer": ["./evil", "/somewhere/evil", "a.b"],
    "fetch.python": ["evil"],
    "fetch.allow_private": [True],
    "verify.server": ["http://elsewhere:8000", "https://elsewhere"],
    "verify.api_key_env": ["AWS_SECRET_ACCESS_KEY"],
    "pairs.path": ["s3://bucket/a?endpoint_override=http://elsewhere:9000"],
    "clean.heads": [[{"reason": "unsafe", "head": "evil.py:evil", "threshold": 0.5}]],
    "select.exclude": [["s3://bucket/a?endpoint_override=http://elsewhere:9000"]],
}
"""By setting what is not taken of an output."""
LOOKED_AT = {
    "output": "where the user says",
    "pairs.path": "read as data", "pairs.image_root": "read as data", "pairs.where": "a language of its own, parsed",
    "pairs.keep_columns": "names of columns", "pairs.key_column": "a column", "pairs.url_column": "a column",
    "pairs.group_column": "a column", "pairs.text_column": "a column", "pairs.image_column": "a column",
    "pairs.truth_column": "a column", "pairs.mentioned_column": "a column", "pairs.wider_column": "a column",
    "pairs.slice_columns": "columns", "session.shared_folders": "folders that workers read",
    "fetch.folder": "no command of a folder fetches", "fetch.contact": "a text that is sent by `i2e fetch` alone",
    "fetch.user_agent": "the same", "fetch.disallowed_directives": "words", "fetch.blocked_domains": "read as data",
    "knowledge_base.path": "read as data", "knowledge_base.dump": "read as data",
    "knowledge_base.popularity": "read as data", "knowledge_base.importance": "read as data",
    "knowledge_base.anchors": "read as data", "knowledge_base.redirects": "read as data",
    "knowledge_base.languages": "codes", "link.weights": "JSON", "label.calibration": "JSON",
    "score.model": "weights without code (weights_only, safetensors)", "score.pretrained": "the same",
    "score.device": "a name of torch's", "score.text_template": "a text", "score.name_template": "a text",
    "score.description_template": "a text", "select.exclude": "read as data",
    "clean.evaluation_sets": "read as data", "clean.only_domains": "domains", "publish.title": "a text",
    "publish.license": "a text", "publish.languages": "codes", "publish.contact": "a text",
    "link.reranker.model": "weights without code (safetensors, no code of theirs)",
    "link.reranker.device": "a name of torch's",
    "verify.model": "weights without code (safetensors, no code of theirs)", "verify.served_model": "a name",
    "verify.prompt": "a text, shown to whom the user names", "verify.device": "a name of torch's",
    "train.dataset": "read as data", "train.folder": "no command of a folder trains",
    "train.wandb": "the same", "train.start_from": "the same", "train.evaluate_sets": "the same",
    "train.evaluate_protocols": "names",
    "train.device": "a name of torch's",
    "train.encoder.model": "weights without code", "train.encoder.pretrained": "the same",
    "train.text.template": "a text", "train.data.hold_out_salt": "a text",
    "train.loss.teacher": "read as data", "train.reinforce.folder": "the same",
    "evaluate.models": "no command of a folder evaluates",
    "evaluate.data": "the same", "evaluate.suite": "names", "evaluate.folder": "the same",
    "evaluate.device": "the same", "evaluate.oven.entities": "the same",
    "evaluate.oven.trained_on": "the same",
}  # fmt: skip
"""The other settings that are texts, and why they are taken."""
OF_REACHING = ("session.conf", "storage.options")

EVIL = """
import pathlib
pathlib.Path({trace!r}).mkdir()
from i2e_pipeline.engine.stage import Stage
class Evil(Stage):
    name, after = "evil", ("score",)
"""


def tree_of(key: str, value: Any) -> dict[str, Any]:
    parts = key.split(".")
    for of in OF_REACHING:
        if key.startswith(f"{of}."):
            parts = [*of.split("."), key.removeprefix(f"{of}.")]
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def output(folder: Path, tree: dict[str, Any]) -> Path:
    """An output as a run leaves it, as far as its settings go."""
    (folder / "_commits" / "pairs").mkdir(parents=True)
    (folder / "units").mkdir()
    (folder / "i2e").mkdir()
    (folder / "i2e" / "manifest.json").write_text('{"units": {}, "format_version": 2}')
    (folder / "config.yaml").write_text(configuration._MARK + yaml.safe_dump({"output": "/elsewhere", **tree}))
    return folder


@pytest.mark.parametrize("key", REACHING)
def test_what_loads_code_or_reaches_out_is_refused_by_name(key: str) -> None:
    for value in REACHING[key]:
        with pytest.raises(ConfigError, match=rf"^a\.yaml sets {key}, .*`--config a\.yaml`"):
            stages.of_output(tree_of(key, value), "a.yaml")


def test_a_recognizer_is_one_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder goes before an installed package of its name."""
    monkeypatch.chdir(tmp_path)
    for name in ("blank", "en_core_web_sm"):
        assert stages.of_output(tree_of("extract.recognizer", name), "a.yaml").extract.recognizer == name
    (tmp_path / "en_core_web_sm").mkdir()
    with pytest.raises(ConfigError, match=r"sets extract\.recognizer,"):
        stages.of_output(tree_of("extract.recognizer", "en_core_web_sm"), "a.yaml")


def test_what_the_user_puts_in_its_place_is_the_users_own() -> None:
    tree = {**tree_of("stages", ["evil.py:Evil"]), **tree_of("session.conf.spark.jars", "evil.jar")}
    made = stages.of_output(tree, "a.yaml", ["stages=[]", "session.conf={}", "session.master=local[3]"])
    assert (made.stages, made.session.conf, made.session.master) == ((), {}, "local[3]")
    with pytest.raises(ConfigError, match=r"sets session\.conf\.spark\.jars,"):
        stages.of_output(tree, "a.yaml", ["stages=[]", "session.conf.spark.ui.enabled=false"])


def test_what_runs_keep_is_taken(tmp_path: Path) -> None:
    """Of the defaults, of the embedded sample, and with what says how much and how long."""
    conf = {"spark.sql.shuffle.partitions": "200", "spark.driver.maxResultSize": "2g", "spark.network.timeout": "800s"}
    session = {"master": "local[4, 2]", "driver_memory": "12g", "conf": conf}
    trees = [{}, embedded.tree(), {"session": session, "score": {"model": "ViT-B-16@laion2b_s34b_b88k"}}]
    for n, tree in enumerate(trees):
        made = stages.from_tree(tree, "test")
        keep(made, str(tmp_path / str(n)))
        assert stages.of_folder(str(tmp_path / str(n))) is not None


@pytest.mark.parametrize("command", ["verify", "repair", "explore", "merge", "open_output"])
def test_no_command_of_a_folder_runs_what_lies_in_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: `i2e verify FOLDER` of a downloaded output, whose config names a module beside it."""
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "executed"
    folder = output(tmp_path / "out", {"stages": [f"{tmp_path}/out/evil_{command}.py:Evil"]})
    (folder / f"evil_{command}.py").write_text(EVIL.format(trace=str(trace)))
    other = output(tmp_path / "other", {})
    if command == "open_output":
        with pytest.raises(ConfigError, match="sets stages,"):
            i2e_pipeline.open_output(str(folder))
    else:
        with pytest.raises(SystemExit) as ended:
            cli.main([command, str(folder), *([str(other), "--to", "both"] if command == "merge" else [])])
        assert ended.value.code == 2
        assert "config.yaml sets stages, " in capsys.readouterr().err
    assert not trace.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever such a stage is refused for
        stages.pipeline(stages.load(str(folder / "config.yaml")))
    assert trace.exists()  # whoever names the file trusts it


def test_settings_of_an_output_are_bounded(tmp_path: Path) -> None:
    """Catches: a few lines of anchors that are 10⁹ values."""
    folder = output(tmp_path / "out", {})
    levels = ["&a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (folder / "config.yaml").write_text(f"{configuration._MARK}pairs: {{path: [{', '.join(levels)}]}}\n")
    for read in (lambda: stages.of_folder(str(folder)), lambda: i2e_pipeline.open_output(str(folder))):
        with pytest.raises((ConfigError, SettingsError), match="anchors"):
            read()
    for command in (["verify"], ["repair"], ["merge", "--to", str(tmp_path / "to"), str(folder)]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, str(folder)])
        assert ended.value.code == 2


def texts(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Settings that may hold a text of the user's own."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from texts(kind, f"{above}{name}.")
        elif _may_be_text(kind):
            yield f"{above}{name}"


def _may_be_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return False
    if isinstance(kind, type) and issubclass(kind, BaseModel):  # a list of sections
        return any(True for _ in texts(kind))
    return kind is str or any(map(_may_be_text, get_args(kind)))


def test_every_setting_was_looked_at() -> None:
    """Catches: a new setting that names code, and that nobody has thought of here."""
    known = {*LOOKED_AT, *(key for key in REACHING if not key.startswith(OF_REACHING)), *OF_REACHING}
    assert set(texts(Config)) == known - {"fetch.allow_private"}
