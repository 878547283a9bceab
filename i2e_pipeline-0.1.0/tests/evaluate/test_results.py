from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.evaluate import results
from i2e_pipeline.evaluate.results import Data, Model, Result, Results, ResultsError


def model(label: str = "b16", **fields: Any) -> Model:
    return Model(
        **{"label": label, "spec": "ViT-B-16", "fingerprint": "f", "preprocessing": "model", "width": 4, **fields}
    )


def result(**fields: Any) -> Result:
    return Result(
        **{
            "model": "b16",
            "data": "gpr1200",
            "protocol": "gpr",
            "figures": {"mAP": 0.5},
            "per_query": {"mAP": [0.25, None, 0.75]},
            **fields,
        }
    )


def some(**fields: Any) -> Results:
    data = (Data("gpr1200", "gpr", "/data/gpr1200", "d", 3, 2),)
    return Results(
        **{"models": (model(),), "data": data, "results": (result(),), "clusters": {"gpr1200/gpr": [0, 0, 1]}, **fields}
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = str(tmp_path / "sub" / "results.json")
    written = some(settings={"seed": 0}, software=results.software())
    results.write(path, written)
    assert results.read(path) == written


def test_files_of_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        results.write(str(tmp_path / name), some())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_per_query_values_take_no_line_each(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write(str(path), some(results=(result(per_query={"mAP": [0.5] * 10_000}),)))
    assert len(path.read_text().splitlines()) < 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no `results`"),
        ('{"format_version": 2, "results": []}', "format_version 2, and this version of i2e reads 1"),
        ('{"results": []}', "format_version None"),
        ('{"format_version": 1, "results": []}', "is damaged: 'models'"),
        ('{"format_version": 1, "results": [{"mAP": 1}], "models": [], "data": []}', "is damaged"),
    ],
)
def test_a_file_that_is_not_results_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ResultsError, match=r"r\.json") as error:
        results.read(str(path))
    assert said in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ResultsError, match="no such file"):
        results.read("/nowhere/r.json")


def test_a_figure_that_is_not_a_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        results.write(str(tmp_path / "r.json"), some(results=(result(figures={"mAP": float("nan")}),)))
    assert not list(tmp_path.iterdir())


def test_stored_vectors_results_read_like_any_other(tmp_path: Path) -> None:
    level = {"mAP": 0.5, "mP@k": {"1": 1.0, "5": None}, "ap": [0.5, None]}
    trees = {
        "gpr": {"mAP": 0.4, "mAP_of_random_vectors": 0.1, "per_domain": {"faces": 0.4}, "ap": [0.4]},
        "revisited": {"easy": level, "medium": level, "hard": level},
    }
    for protocol, figures in trees.items():
        path = tmp_path / f"{protocol}.json"
        path.write_text(json.dumps({"format_version": 1, "results": {protocol: figures}}))
        read = results.read(str(path))
        assert [m.label for m in read.models] == [protocol]
    assert next(iter(read.results[0].figures.items())) == ("medium mAP", 0.5)
    assert read.results[0].per_query["hard mAP"] == [0.5, None]
    assert "hard mP@5" not in read.results[0].figures


def test_published_figures_stand_beside_ours_under_the_same_name_only() -> None:
    table = results.markdown(some())
    assert "MOFI ViT-H/14 (released) 86.75; MOFI (paper) 86.66; MOFI ViT-L/14 (released) 86.14" in table
    assert "OpenAI CLIP 72.19" in table
    other = some(data=(Data("mine", "classes", "/mine", "d", 3, 2),), results=(result(data="mine"),))
    assert "MOFI" not in results.markdown(other)
    assert "published" not in results.markdown(other)


def test_every_published_figure_is_a_fraction_with_a_source() -> None:
    assert results.published_figures()
    for figure in results.published_figures():
        assert 0 < figure.value < 1
        assert figure.source


def test_markdown_marks_the_best_and_leaves_a_dash_where_a_protocol_does_not_apply() -> None:
    two = some(
        models=(model(), model("l14")),
        results=(
            result(),
            result(model="l14", figures={"mAP": 0.6}),
            result(protocol="zero_shot", figures={"acc@1": 0.3}, per_query={}),
        ),
    )
    lines = results.markdown(two).splitlines()
    assert "| 50.00 | **60.00** |" in lines[2]
    assert "| 30.00 | – |" in lines[3]


def test_a_bar_in_a_label_does_not_break_the_table() -> None:
    lines = results.markdown(some(models=(model("a|b"),), results=(result(model="a|b"),))).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_csv_has_a_row_per_figure_and_sources_for_what_others_measured() -> None:
    rows = list(csv.DictReader(io.StringIO(results.table_csv(some()))))
    assert {r["model"]: float(r["value"]) for r in rows}["b16"] == 0.5
    assert [r["model"] for r in rows if not r["source"]] == ["b16"]
    assert "arXiv 2306.07952" in {r["model"]: r["source"] for r in rows}["OpenAI CLIP"]


def test_terminal_table_lists_where_published_figures_come_from() -> None:
    said = results.terminal(some())
    assert "OpenAI CLIP" in said.split("published\n")[1]
    assert "50.00" in said


def by_domain() -> Results:
    """Of 3 queries the first two are of faces."""
    parts = {"domain": {"faces": 0.25, "nature": 0.75}}
    one = result(figures={"mAP": 0.5, results.CHANCE: 0.1}, parts=parts)
    two = result(model="l14", figures={"mAP": 0.6, results.CHANCE: 0.1}, parts=parts)
    return some(
        models=(model(), model("l14")),
        results=(one, two),
        groups={"gpr1200/gpr": {"domain": ["faces", "faces", "nature"]}},
    )


def test_each_domain_has_a_row_in_every_table() -> None:
    """Catches: six domains in the file and none of them in a table."""
    rows = list(csv.DictReader(io.StringIO(results.table_csv(by_domain()))))
    faces = [r for r in rows if r["figure"] == "mAP, faces"]
    assert [(r["model"], r["value"], r["queries"]) for r in faces] == [("b16", "0.25", "1"), ("l14", "0.25", "1")]
    for table in (results.markdown(by_domain()), results.terminal(by_domain())):
        assert "mAP, faces (1)" in table
        assert "mAP, nature (1)" in table


def test_parts_of_other_figures_are_means_of_their_queries() -> None:
    long_tail = result(
        figures={"acc@1": 0.25, "acc@5": 0.5, "acc@1 by entity": 0.3},
        per_query={"acc@1": [0, 0, 0, 1], "acc@5": [1, 0, 0, 1], "acc@1 by entity": [0.2, None, None, 0.4]},
        parts={"images per entity": {"1–4": 0.0, "5–9": 0.5}},
    )
    groups = {"gpr1200/gpr": {"images per entity": ["1–4", "1–4", "5–9", "5–9"]}}
    found = {line.name: line.values for line in results.lines(some(results=(long_tail,), groups=groups)) if line.part}
    assert found == {
        "acc@1, 1–4 images per entity (2)": (0.0,),
        "acc@1, 5–9 images per entity (2)": (0.5,),
        "acc@5, 1–4 images per entity (2)": (0.5,),
        "acc@5, 5–9 images per entity (2)": (0.5,),
    }


def test_chance_and_equal_values_have_no_best() -> None:
    best = {line.figure: line.best for line in results.lines(by_domain())}
    assert best == {"mAP": 0.6, results.CHANCE: None, "mAP, faces": None, "mAP, nature": None}


def test_a_file_of_before_a_field_came_up_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    results.write(str(path), some())
    tree = json.loads(path.read_text())
    for new in ("not_measured", "groups", "software"):
        del tree[new]
    del tree["results"][0]["notes"], tree["data"][0]["not_decoded"]
    path.write_text(json.dumps(tree))
    assert results.read(str(path)).results == some().results


def test_notes_and_curves_are_read_again(tmp_path: Path) -> None:
    written = some(results=(result(notes=["k=200 left out"], curve=[(0.1, 0.5), (1.0, 0.75)]),))
    results.write(str(tmp_path / "r.json"), written)
    assert results.read(str(tmp_path / "r.json")) == written
