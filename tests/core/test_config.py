from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from i2e_pipeline.core import config
from i2e_pipeline.core.config import ConfigError


def test_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("score: {batch_size: 8, model: 'local-dir:m'}\npairs: {path: a/*.parquet}\n")
    made = config.load(str(file), ["score.batch_size=16", "pairs.path=[a, b]"])
    assert (made.score.batch_size, made.score.model, made.pairs.path) == (16, "local-dir:m", ("a", "b"))


def test_one_path_is_a_list_of_one() -> None:
    assert config.load(None, ["pairs.path=x"]).pairs.path == ("x",)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("score.batch_size=-3", "score.batch_size: -3 is not allowed (greater than or equal to 1), from --set"),
        (
            "score.batchsize=3",
            "score.batchsize: no such setting, from --set; do you mean score.batch_size? Known here: background",
        ),
        (
            "scores.model=x",
            "scores: no such setting, from --set; do you mean score? Known here: clean, evaluate, extract",
        ),
        ("scor.batch_size=3", "scor: no such setting, from --set; do you mean score? Known"),
        ("SCORE.batch_size=3", "do you mean score? Known"),
        ("score.Batch-Size=3", "do you mean score.batch_size? Known"),
        ("wave_rows=3", "wave_rows: no such setting, from --set; do you mean run.wave_rows? Known"),
        ("train.encodr.model=x", "train.encodr: no such setting, from --set; do you mean train.encoder? Known"),
        ("units.x=3", "units: no such setting, from --set; known here: clean, evaluate"),
        ("storage.format=csv", "storage.format: 'csv' is not allowed ('parquet' or 'delta'), from --set"),
        ("score.batch_size=many", "score.batch_size: 'many' is not allowed"),
        ("score.batch_size", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("score..batch_size=3", "a name is missing beside a dot"),
        ("session.conf.=3", "a name is missing beside a dot"),
        ("score=3", "score: 3 is not allowed (a section: a setting and its value in each line below it), from --set"),
        ("session.conf=x", "session.conf: 'x' is not allowed (names with their values: {name: value}), from --set"),
        ("train.optimizer.betas=0.9", "train.optimizer.betas: 0.9 is not allowed (a list: [one, other]), from"),
        ("score.batch_size=", "score.batch_size: nothing is not allowed (a whole number), from --set"),
        ("score.batch_size=2026-01-02", "score.batch_size: '2026-01-02' is not allowed (a whole number), from --set"),
        ("score.batch_size=1:30", "score.batch_size: '1:30' is not allowed (a whole number), from --set"),
        ("score.batch_size=1.5", "score.batch_size: 1.5 is not allowed (a whole number), from --set"),
        ("run.wave_gb=1e400", "run.wave_gb: '1e400' is not allowed (a finite number), from --set"),
        ("run.wave_gb=.inf", "run.wave_gb: inf is not allowed (a finite number), from --set"),
        ("label.threshold=nan", "label.threshold: 'nan' is not allowed (a finite number), from --set"),
        ("extract.gazetteer=maybe", "extract.gazetteer: 'maybe' is not allowed (true or false), from --set"),
        ("train.data.crop_area=[0.5]", "train.data.crop_area.1: [0.5] is not allowed (one value more is wanted)"),
        ("output=", "output: an empty name: name a path, or leave the setting out, from --set"),
        ("pairs.path= ", "pairs.path.0: an empty name: name a path, or leave the setting out, from --set"),
        ("output=/data/\udce9t\udce9", "output: a name that is no UTF-8"),
        ("output.x=1", "output"),
        ("link.max_candidates=50", "link.max_candidates (50) is more than knowledge_base.max_candidates (20)"),
    ],
)
def test_a_bad_setting_is_refused_with_path_value_and_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(None, [override])
    assert said in str(error.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.load(str(tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold sections"):
        config.load(str(tmp_path / "list.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        config.load(str(tmp_path / "bad.yaml"))


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        config.load().score.batch_size = 3  # type: ignore[misc]


def test_dump_loads_again(tmp_path: Path) -> None:
    made = config.load(None, ["select.max_images_per_entity=7"])
    (tmp_path / "c.yaml").write_text(config.dump(made))
    assert config.load(str(tmp_path / "c.yaml")) == made


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert config.digest({"a": 1, "b": [2]}) == config.digest({"b": [2], "a": 1})
    assert config.digest({"a": 1}) != config.digest({"a": 2})
