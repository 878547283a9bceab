"""What driver and workers must share is looked at before the first stage, and each fault has its remedy."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core.config import load
from i2e_pipeline.engine import cluster, session
from i2e_pipeline.engine.cluster import ClusterError, Seen

MASTER = "session.master=spark://head:7077"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("output=out/here", "output: out/here"),
        ("pairs.path=[/shared/a.parquet, b/*.parquet]", "pairs.path: b/*.parquet"),
        ("knowledge_base.dump=dump.json.bz2", "knowledge_base.dump: dump.json.bz2"),
        ("link.weights=weights.json", "link.weights: weights.json"),
        ("score.model=local-dir:models/scorer", "score.model: models/scorer"),
        ("train.encoder.model=local-dir:models/scorer@random", "train.encoder.model: models/scorer"),
        ("extract.recognizer=models/recognizer", "extract.recognizer: models/recognizer"),
        ("label.calibration=calibration.json", "label.calibration: calibration.json"),
    ],
)
def test_a_relative_path_is_refused_on_a_cluster(setting: str, said: str) -> None:
    """Catches: every executor writing below its own working folder, "264,482 rows in, 0 out"."""
    config = load(None, ["output=/shared/out", MASTER, setting])
    with pytest.raises(ClusterError) as refused:
        cluster.refuse_relative(config)
    assert str(refused.value).splitlines()[0] == f"{said} is relative"
    assert "a URI (s3://" in str(refused.value)


def test_absolute_paths_uris_and_names_are_taken_and_local_mode_takes_all() -> None:
    paths = ("output=s3://bucket/out", "pairs.path=/shared/*.parquet", "score.model=ViT-B-32@openai")
    cluster.refuse_relative(load(None, [*paths, "extract.recognizer=en_core_web_sm", MASTER]))
    cluster.refuse_relative(load(None, ["output=out", "session.master=local[2]"]))


def seen(**differing: Any) -> Seen:
    mine = Seen(
        host="b",
        python=".".join(map(str, sys.version_info[:3])),
        executable="/opt/python",
        packages={name: str(cluster._version(name)) for name in (*cluster.NEEDED, *cluster.USEFUL)},
        code=cluster.code(),
    )
    return replace(mine, **differing)


def test_equal_workers_have_no_fault() -> None:
    assert cluster.faults([seen()]) == ([], [])


@pytest.mark.parametrize(
    ("differing", "said"),
    [
        ({"python": "2.7.18"}, "run Python 2.7.18"),
        ({"packages": {}}, "lack pyarrow, numpy"),
        ({"error": "No module named 'wikidata'", "code": ""}, "--py-files"),
        ({"code": "0" * 32}, "run `make dist` again"),
        ({"skew": 300.0}, "the clock of b is 300 s off"),
        ({"paths": {"output: /out": "workers cannot write there (Permission denied)"}}, "output: /out: workers cannot"),
    ],
)
def test_each_fault_is_named_with_its_machine(differing: dict[str, Any], said: str) -> None:
    (fault,), _ = cluster.faults([seen(), seen(**differing)])
    assert said in fault
    assert "b" in fault


def test_another_version_is_a_note_and_no_fault() -> None:
    packages = seen().packages | {"pyarrow": "1.0"}
    wrong, (note,) = cluster.faults([seen(packages=packages)])
    assert not wrong
    assert note.startswith("pyarrow is 1.0")


def test_a_folder_that_is_not_the_drivers_is_found(tmp_path: Path) -> None:
    """The same path on two machines, and not the same disk."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "driver").write_text("token")
    (tmp_path / "other").mkdir()
    wrong, wrote = cluster.look_at([str(tmp_path / "mine"), str(tmp_path / "other")], [str(tmp_path / "gone")], "token")
    assert set(wrote) == {str(tmp_path / "mine")}
    assert "no shared folder" in wrong[str(tmp_path / "other")]
    assert "do not see it" in wrong[str(tmp_path / "gone")]


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ('x java.io.IOException: Cannot run program "nowhere/python": error=2\nat y', "have no nowhere/python"),
        ("Exception: [PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.9 than", "3.9"),
        ("ModuleNotFoundError: No module named 'pyspark'", "does not find pyspark"),
        ("An error occurred while calling o74.collect.\nOSError: [Errno 28] No space left", "No space left"),
    ],
)
def test_why_workers_cannot_answer_is_said(said: str, cause: str) -> None:
    """Catches: "calling o74.collectToPython" and no cause."""
    message = cluster._no_answer(said, "spark://head:7077")
    assert cause in message
    assert "PYSPARK_PYTHON" in message


def test_the_code_is_named_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.code() == cluster.code()
    monkeypatch.setattr(cluster.resources, "files", lambda package: tmp_path)
    nothing = cluster.code()
    (tmp_path / "module.py").write_text("a = 1")
    assert cluster.code() != nothing


@pytest.mark.parametrize(
    ("address", "visible", "name"),
    [("3", None, "cuda:3"), ("0", "", "cuda:0"), ("5", "4,5", "cuda:1"), ("GPU-a", "GPU-b,GPU-a", "cuda:1")],
)
def test_the_card_is_the_one_that_spark_gave(address: str, visible: str | None, name: str) -> None:
    assert cluster.card(address, visible) == name


def test_a_card_that_torch_cannot_count_is_refused() -> None:
    with pytest.raises(ClusterError, match="discovery script"):
        cluster.card("GPU-a", None)


@pytest.mark.parametrize("master", ["sc://host:15002", "spark"])
def test_spark_connect_is_refused_with_its_cause(master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if master == "spark":
        monkeypatch.setenv("SPARK_REMOTE", "sc://host:15002")
    with pytest.raises(session.SessionError, match="has no SparkContext"):
        session.build(load(None, [f"session.master={master}"]))


def test_executors_for_gpus_want_dynamic_allocation(spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(None, ["session.gpu_executor={gpus: 2, cores: 8}"])
    assert cluster.profile(spark, config) is None
    monkeypatch.setattr(cluster, "is_local", lambda master: False)
    with pytest.raises(ClusterError, match=r"dynamicAllocation\.enabled=true"):
        cluster.profile(spark, config)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "gs://bucket/out",
            ("gs://", "--packages com.google.cloud.bigdataoss:gcs-connector", "--conf spark.hadoop.fs.gs"),
        ),
        ("s3a://bucket/out", ("s3a://", "--packages org.apache.hadoop:hadoop-aws:3.")),
    ],
)
def test_a_store_that_hadoop_does_not_know_is_said_with_its_jars(
    output: str, said: tuple[str, ...], spark: Any
) -> None:
    lacking = session.lacking_jars(spark, load(None, [f"output={output}"]))
    assert lacking is not None
    assert all(words in lacking for words in said)


def test_a_session_that_has_its_jars_lacks_none(spark: Any) -> None:
    assert session.lacking_jars(spark, load(None, ["output=/out"])) is None


@pytest.mark.delta
def test_delta_is_found_where_it_is(spark: Any) -> None:
    assert session.lacking_jars(spark, load(None, ["output=/out", "storage.format=delta"])) is None
