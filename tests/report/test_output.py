"""Tables for notebooks: what commit records name, by pyarrow and by Spark alike."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import i2e_pipeline
from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.report import output as module
from i2e_pipeline.report.output import OutputError
from i2e_pipeline.report.thresholds import labels_at
from tests.chain import settings
from tests.report.conftest import UNIT, Output, image
from tests.test_stored_output import STORED

pytest.importorskip("pandas")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> module.Output:
    """The output of an earlier version, without Spark."""
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return i2e_pipeline.open_output("config.yaml")


def rows(output: module.Output, *asked: Any, **more: Any) -> list[dict[str, Any]]:
    """Rows in an order that does not depend on who read them."""
    return sorted(output.arrow(*asked, **more).to_pylist(), key=repr)


def test_a_folder_a_file_and_a_config_open_the_same(published: Callable[..., Output]) -> None:
    made = published()
    (made.root / "config.yaml").write_text("output: moved/since\n")
    opened = [i2e_pipeline.open_output(where) for where in (str(made.root), made.config)]
    assert [o.arrow("labels").num_rows for o in opened] == [3, 3]
    assert opened[0].pipeline.config.output == str(made.root)
    with pytest.raises(OutputError, match="holds nothing that a run has made"):
        i2e_pipeline.open_output(str(made.root / "elsewhere"))


def test_files_that_no_record_names_are_not_read(published: Callable[..., Output]) -> None:
    """Catches: reading a folder instead of a table: what a replaced commit of a Delta table leaves lies there, too."""
    made = published()
    folder = made.root / "labels" / f"unit={UNIT}"
    shutil.copyfile(folder / "part-0.parquet", folder / "part-1.parquet")
    output = i2e_pipeline.open_output(str(made.root))
    assert output.arrow("labels").num_rows == 3
    assert output.count("labels", ["entity_id"])["rows"].sum() == 3


def test_units_that_are_not_published_are_left_out(published: Callable[..., Output]) -> None:
    made = published()
    more = {**pq.read_table(made.root / "labels" / f"unit={UNIT}" / "part-0.parquet").to_pylist()[0], "entity_id": 7}
    made.commit("label", "u-begun", {"labels": [more]})
    assert i2e_pipeline.open_output(str(made.root)).arrow("labels").num_rows == 3
    (made.root / "i2e" / "manifest.json").unlink()
    assert i2e_pipeline.open_output(str(made.root)).arrow("labels").num_rows == 4


def test_columns_filters_and_most(published: Callable[..., Output]) -> None:
    output = i2e_pipeline.open_output(str(published().root))

    def names(*filter: tuple[str, str, Any]) -> list[str]:
        return sorted(output.arrow("i2e/statistics/entities", ["name"], filter)["name"].to_pylist())

    assert names() == ["apple", "pear", "week"]
    assert names(("images", ">", 0), ("name", "!=", "pear")) == ["apple"]
    assert names(("entity_id", "in", [89, 434, 1])) == ["apple", "pear"]
    assert names(("entity_id", "in", [])) == []
    assert names(("class_index", "=", None)) == ["week"]
    assert names(("class_index", "!=", None), ("images", "<=", 1)) == ["pear"]
    assert output.arrow("labels", ["unit", "entity_id"], most=2).to_pydict()["unit"] == [UNIT, UNIT]
    image_id = output.arrow("labels", ["image_id"])["image_id"][0].as_py()
    assert output.pandas("labels", filter=[("image_id", "=", image_id)])["mention"].tolist() == ["apple one"]


def test_what_is_not_there_is_named_with_what_is(published: Callable[..., Output]) -> None:
    output = i2e_pipeline.open_output(str(published().root))
    with pytest.raises(OutputError, match=r"no table 'label': it has .*labels.*rejects/label"):
        output.table("label")
    with pytest.raises(OutputError, match=r"labels has no column score: it has .*probability.*unit"):
        output.table("labels", ["score"])
    with pytest.raises(OutputError, match=r"has no column score"):
        output.table("labels", ["entity_id"], [("score", ">", 0.5)])
    for wrong in (("entity_id", "~", 1), ("entity_id", "<", None)):
        with pytest.raises(OutputError, match="operators are"):
            output.table("labels", None, [wrong])


def test_counts_are_by_value_and_by_the_length_of_lists(published: Callable[..., Output]) -> None:
    two = image("both", (89, 0, 0.9), (434, 1, 0.8))
    reject = {"reason": "below_bar", "id": b"x" * 16, "shard": 0, "row": 9, "detail": "d"}
    made = published(images=[image("one", (89, 0, 0.9)), two, image("two", (89, 0, 0.9))], rejects=[reject])
    output = i2e_pipeline.open_output(str(made.root))
    assert output.count("i2e/images", ["labels"]).to_dict("list") == {"labels": [1, 2], "rows": [2, 1]}
    assert output.count("labels", ["entity_id", "unit"], [("probability", ">", 0.85)]).to_dict("list") == {
        "entity_id": [89], "unit": [UNIT], "rows": [3],
    }  # fmt: skip
    assert output.count("rejects/label", ["reason"]).to_dict("list") == {"reason": ["below_bar"], "rows": [1]}
    assert output.count("rejects/pairs", ["reason"]).empty


def test_an_output_of_an_earlier_version_is_read(stored: module.Output) -> None:
    """Its files have ids as bytes, and not all columns of today."""
    assert set(stored.names) > {"labels", "kb/entities", "i2e/images", "rejects/link"}
    assert stored.count("kb/entities", ["coarse_type"])["coarse_type"].isna().all()
    assert stored.arrow("i2e/images", ["image_id"]).num_rows == stored.manifest["images"]


def test_judged_candidates_give_the_figures_of_the_run(stored: module.Output) -> None:
    figure = next(f for f in stored.quality() if (f["stage"], f["slice"]) == ("label", "all"))
    chosen = stored.judged.filter(pc.is_null(stored.judged["reason"]))
    right = pc.sum(chosen["right"]).as_py()
    assert figure["pairs"] == stored.truth.num_rows
    assert right / len(pc.drop_null(chosen["right"])) == pytest.approx(figure["precision"], abs=1e-4)
    named = stored.truth.filter(stored.truth["named"])["pair_id"].cast(pa.binary(16)).combine_chunks()
    found = chosen.filter(pc.and_(chosen["right"], pc.is_in(chosen["pair_id"], named)))
    assert len(pc.unique(found["pair_id"])) / len(named) == pytest.approx(figure["recall"], abs=1e-4)


def test_an_input_that_is_gone_has_no_truth(stored: module.Output) -> None:
    for path in Path("in").iterdir():
        path.unlink()
    assert stored.truth.num_rows == stored.judged.num_rows == 0


def test_images_of_the_input_are_shown_and_broken_ones_are_none(stored: module.Output) -> None:
    scored = stored.arrow("scores", ["unit", "shard", "row", "width", "height"]).to_pylist()
    for one in scored[:3]:
        (shown,) = stored.images(one["unit"], one["shard"], [one["row"]])
        assert shown is not None
        assert shown.size == (one["width"], one["height"])
    broken = stored.arrow("rejects/score", filter=[("reason", "in", ["not_an_image", "null_image", "empty_image"])])
    for one in broken.to_pylist():
        unit = next(u.name for u in stored.run.units if any(f.shard == one["shard"] for f in u.files))
        assert stored.images(unit, one["shard"], [one["row"]]) == [None]


def candidates(*told: tuple[str, int, str, float]) -> pa.Table:
    """(pair, entity, words, probability), as JUDGED has them."""
    return pa.table(
        {
            "pair_id": pa.array([pair.encode().ljust(16) for pair, *_ in told], pa.binary(16)),
            "entity_id": [entity for _, entity, *_ in told],
            "mention": [words for _, _, words, _ in told],
            "probability": pa.array([p for *_, p in told], pa.float32()),
        }
    )


def test_another_threshold_chooses_by_the_stage_s_rule() -> None:
    told = candidates(
        ("a", 1, "rook", 0.9), ("a", 2, "rook", 0.85), ("a", 3, "pawn", 0.88), ("b", 4, "kiwi", 0.3),
        ("c", 5, "x", 0.0), ("d", 6, "y", 1.0),
    )  # fmt: skip
    assert labels_at(told, 0.5).tolist() == [True, False, True, False, False, True]
    assert labels_at(told, 0.2).tolist() == [True, False, True, True, False, True]
    assert labels_at(told, 0.89).tolist() == [True, False, False, False, False, True]
    assert labels_at(told, 0.2, max_labels=1).tolist() == [True, False, False, True, False, True]
    assert labels_at(told.slice(0, 0), 0.5).tolist() == []


def test_delta_is_read_by_its_records(tmp_path: Path, output: Output) -> None:
    """Catches: rows that a later commit replaced, whose files a Delta table keeps."""
    tables = Tables(str(output.root), StorageConfig(format="delta"), catalogue=output.pipeline.tables.catalogue)
    for name in ("first", "second"):
        row = dict.fromkeys(tables.catalogue.schema("labels").names)
        row |= dict.fromkeys(("image_id", "pair_id"), b"i" * 16) | dict.fromkeys(("shard", "row", "width", "height"), 0)
        row |= {"entity_id": 1, "clip_score": 0.1, "text_probability": 0.2, "probability": 0.3, "mention": name}
        batch = pa.RecordBatch.from_pylist([row], tables.catalogue.schema("labels"))
        staged = tables.write_local(iter([("labels", batch)]), "label", UNIT, ("labels",))
        record = module.Commit("label", UNIT, name, {}, staged.files, 1, 1, {}, seconds=0.1)
        tables.commit([(record, [staged])])
    assert len(list((output.root / "labels").rglob("*.parquet"))) == 2
    opened = i2e_pipeline.open_output(str(output.root))
    assert opened.arrow("labels", ["mention"])["mention"].to_pylist() == ["second"]
    assert opened.count("labels", ["mention"])["mention"].tolist() == ["second"]


@pytest.mark.slow
def test_spark_gives_what_this_process_reads(whole: Path, world: Path, spark: Any) -> None:
    from pyspark.sql import DataFrame

    config = settings(world, whole, "run.waves_in_flight=1", "run.wave_units=1")
    here, there = (i2e_pipeline.open_output(config, spark=session) for session in (None, spark))
    assert isinstance(there.table("labels"), DataFrame)
    pair_id = here.arrow("labels", ["pair_id"])["pair_id"][0].as_py()
    for asked in (
        ("labels", ["unit", "pair_id", "entity_id", "probability"]),
        ("labels", None, [("pair_id", "=", pair_id)]),
        ("labels", ["entity_id"], [("probability", ">", 0.5), ("reason", "=", None)]),
        ("labels", ["mention"], [("pair_id", "in", [pair_id])]),
        ("kb/entities", ["entity_id", "name"], [("coarse_type", "in", ["taxon", "food"])]),
        ("kb/surfaces", ["normal_form", "candidates"], [("normal_form", "=", "mercury")]),
        ("rejects/label", ["reason", "unit"]),
    ):
        found = rows(here, *asked)
        assert found == rows(there, *asked)
        assert found
    assert here.arrow("labels").schema.equals(there.arrow("labels").schema)
    assert there.arrow("labels", most=2).num_rows == 2
    for counted in (("kb/entities", ["coarse_type"]), ("kb/surfaces", ["candidates"]), ("labels", ["reason", "unit"])):
        assert here.count(*counted).equals(there.count(*counted).astype(here.count(*counted).dtypes))
    assert here.truth.equals(there.truth)
    assert here.judged.equals(there.judged)
    threshold = here.manifest["labels_chosen_by"]["bar"]
    chosen = pc.is_null(here.judged["reason"]).to_numpy()
    assert np.array_equal(labels_at(here.judged, threshold), chosen)
    assert 0 < chosen.sum() < len(chosen)
