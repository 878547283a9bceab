"""Rows of popularity and anchor files, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wikidata import sources
from wikidata.source_files import SourceError, recognised


def rows(
    folder: Path, content: str | bytes, form: Any, survey: Any = None, size: int = 1 << 10
) -> list[tuple[str, ...]]:
    path = folder / "rows"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (source,) = recognised([str(path)], form.said)
    found = sources.parsed(source, form, survey, size)
    return [row for c in found for row in zip(*(c[n].to_pylist() for n in form.columns), strict=True)]


POPULARITY, ANCHORS = sources._POPULARITY, sources._ANCHORS
TWO = [("Q81", "10"), ("Q197", "0.5")]


@pytest.mark.parametrize(
    "content",
    [
        "Q81,10\nQ197,0.5\n",
        "qid,number\nQ81,10\nQ197,0.5\n",
        "Entity,QRank\r\nQ81,10\r\nQ197,0.5\r\n",
        "\ufeffqid,number\nQ81,10\nQ197,0.5",
        "\ufeffQ81,10\nQ197,0.5",
        "\nqid, number\n\nQ81, 10\n Q197,0.5 \n\n  \n",
        '"qid","number"\n"Q81","10"\n"Q197","0.5"\n',
        "qid,number,label\nQ81,10,a\nQ197,0.5,b\n",
    ],
)
def test_a_first_row_that_parses_is_data(tmp_path: Path, content: str) -> None:
    """Catches: the first row of a file without a header is lost."""
    assert rows(tmp_path, content, POPULARITY) == TWO


def test_a_first_anchor_that_parses_is_data(tmp_path: Path) -> None:
    one = [('"A" half " b', "Q81", "3")]
    assert rows(tmp_path, '"A" half " b\tQ81\t3\n', ANCHORS) == one
    assert rows(tmp_path, 'surface\tqid\tcount\n"A" half " b\tQ81\t3\n', ANCHORS) == one


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Q2,Infinity", "number is not a finite number"),
        ("Q2,inf", "number is not a finite number"),
        ("Q2,NaN", "number is not a finite number"),
        ("Q2,1e400", "number is not a finite number"),
        ("Q2,-1", "number is not a finite number"),
        ("Q2,", "number is not a finite number"),
        ("Q2,many", "number is not a finite number"),
        ("Q2,10,000", "it has 3 columns instead of 2"),
        ("Q2", "it has 1 column instead of 2"),
        ("q2,10", "qid is not Q and a positive number"),
        ("P31,9", "qid is not Q and a positive number"),
        ("2,9", "qid is not Q and a positive number"),
        ("Q0,9", "qid is not Q and a positive number"),
        ("10,Q2", "number is not a finite number"),
    ],
)
@pytest.mark.parametrize("before", ["qid,number\nQ1,1\n\n", "Q1,1\nQ1,1\r\n\n", "\n\n\n"])
def test_a_bad_popularity_is_named_with_its_line(tmp_path: Path, line: str, why: str, before: str) -> None:
    """Catches: infinity passes, and 10,000 is read as 10."""
    number = 1 + before.count("\n")
    with pytest.raises(SourceError, match=rf"rows, line {number}: {line!r} is no row of a CSV of `qid,number`: {why}"):
        rows(tmp_path, f"{before}{line}\nQ3,x\n", POPULARITY)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("a\tQ2\t3.0", "count is not a whole number"),
        ("a\tQ2\t-3", "count is not a whole number"),
        ("a\tQ2\t99999999999999999999", "count is not a whole number"),
        ("\tQ2\t3", "surface is empty"),
        ("a\tb\tQ2\t3", "it has 4 columns instead of 3"),
        ("a\tQ2", "it has 2 columns instead of 3"),
        ("a\tMercury\t3", "qid is not Q and a positive number"),
        ("a\tQ2\t3\t4", "it has 4 columns instead of 3"),
    ],
)
def test_a_bad_anchor_is_named_with_its_line(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(SourceError, match=rf"line 3: .* is no row of a TSV .*: {why}"):
        rows(tmp_path, f"surface\tqid\tcount\nok\tQ1\t1\n{line}\n", ANCHORS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("qid;number\r\nQ1;2\r\n", "'qid;number.*it has 1 column; is it split by ';'"),
        ("Q1;2,5\nQ2;3\n", "'Q1;2,5' .*qid is not Q and a positive number"),
        ("Q1|2\n", r"is it split by '\|'"),
        ("Q1 2\n", "it has 1 column$"),
        ("Q1,5\rQ2,6\r", "it has 3 columns instead of 2$"),
        ('"Q1","1,5"\n', "it has 3 columns instead of 2$"),
        ("Q1,5,\n", "it has 3 columns instead of 2$"),
        ("http://www.wikidata.org/entity/Q1,5\n", "qid is not Q and a positive number"),
        ("Q1,NULL\n", "number is not a finite number"),
        ("qid,number\nqid,number\n", "line 2: .*number is not a finite number"),
        ("Q1,5\n\0\0\0\0", "line 2: .*it has 1 column instead of 2$"),
        ("qid,number\nQ1,5\n".encode("utf-16"), "is text in UTF-16"),
        ("qid,number\nQ1,5\n".encode("utf-16-le"), "is text in UTF-16"),
        (b"-- MySQL dump 10.19\n", "is an SQL dump"),
    ],
)
def test_a_popularity_of_another_form_is_said_in_words_about_it(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    with pytest.raises(SourceError, match=said):
        rows(tmp_path, content, POPULARITY)


@pytest.mark.parametrize("header", ["qid;number", "qid\tnumber", "qid"])
def test_a_header_that_lacks_a_column_is_named(tmp_path: Path, header: str) -> None:
    with pytest.raises(SourceError, match=r"line 1: .*: it has 1 column"):
        rows(tmp_path, f"{header}\nQ81\n", POPULARITY)


def test_rows_that_are_not_utf8_are_counted_over_all_blocks(tmp_path: Path) -> None:
    survey = sources._Survey()
    content = b"surface\tqid\tcount\n" + b"ok\tQ1\t1\n" * 9 + b"Caf\xe9\tQ2\t1\n" + b"\xe9t\xe9\tQ3\t1\nok\tQ4\t1"
    found = rows(tmp_path, content, ANCHORS, survey, size=16)
    assert [s for s, _, _ in found] == ["ok"] * 9 + ["Caf\ufffd", "\ufffdt\ufffd", "ok"]
    assert (survey.rows, survey.not_utf8, survey.first_not_utf8) == (12, 2, 11)
    survey = sources._Survey()
    assert rows(tmp_path, "Café ’€\tQ1\t3\n".encode("cp1252"), ANCHORS, survey)[0][1:] == ("Q1", "3")
    assert survey.not_utf8 == 1


@pytest.mark.parametrize(
    ("content", "unlinked"),
    [
        ("surface\tqid\tcount\tunlinked\na\tQ1\t3\t40\nb\tQ2\t1\t\n", ["40", ""]),
        ("surface\tqid\tcount\tUnlinked \r\na\tQ1\t3\t40\r\nb\tQ2\t1\t\r\n", ["40", ""]),
        ("a\tQ1\t3\t40\nb\tQ2\t1\t0", ["40", "0"]),
        ("a\tQ1\t3\t\nb\tQ2\t1\t0\n", ["", "0"]),
        ("surface\tqid\tcount\tunlinked\tnote\na\tQ1\t3\t40\tx\nb\tQ2\t1\t0\t\n", ["40", "0"]),
        ("surface\tqid\tcount\tnote\na\tQ1\t3\t40\nb\tQ2\t1\t0\n", None),
        ("surface\tqid\tcount\na\tQ1\t3\nb\tQ2\t1\n", None),
        ("a\tQ1\t3\nb\tQ2\t1\n", None),
    ],
)
def test_anchors_may_have_a_fourth_column(tmp_path: Path, content: str, unlinked: list[str] | None) -> None:
    assert rows(tmp_path, content, ANCHORS) == [("a", "Q1", "3"), ("b", "Q2", "1")]
    (source,) = recognised([str(tmp_path / "rows")], ANCHORS.said)
    found = [row for columns in sources.parsed(source, ANCHORS) for row in columns.get("unlinked", ())]
    assert [row.as_py() for row in found] == (unlinked or [])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("en\ta\tX\t0.5", "it has 4 columns instead of 5"),
        ("en\ta\tX\t\tQ2", "importance is not a finite number"),
        ("en\ta\tX\t-1\t", "importance is not a finite number"),
        ("en\ta\tX\t0.5\tX", "qid is not Q and a positive number"),
    ],
)
def test_a_bad_importance_is_named_with_its_line(tmp_path: Path, line: str, why: str) -> None:
    before = "language\ttype\ttitle\timportance\twikidata_id\nen\ta\tA\t0.1\tQ1\nen\tr\tB\t0.1\t\n"
    with pytest.raises(SourceError, match=rf"line 4: .* is no row of wikimedia_importance .*: {why}"):
        rows(tmp_path, f"{before}{line}\n", sources._IMPORTANCE)


def test_first_ids_are_of_rows_that_have_one(tmp_path: Path) -> None:
    path = tmp_path / "importance"
    path.write_text("en\tr\tB\t0.1\t\nen\ta\tA\t0.1\tQ7\nen\tr\tC\t0.1\tQ7\n")
    assert sources.first_ids([str(path)], "importance") == [7]
    path.write_text("en\tr\tB\t0.1\t\n")
    assert sources.first_ids([str(path)], "importance") == []


@pytest.mark.parametrize("value", ["-1", "2.5", "x", "1e3", "99999999999999999999"])
@pytest.mark.parametrize("header", ["surface\tqid\tcount\tunlinked\n", "a\tQ1\t1\t1\n"])
def test_a_bad_fourth_column_is_named_with_its_line(tmp_path: Path, header: str, value: str) -> None:
    with pytest.raises(SourceError, match=r"line 2: .*: unlinked is not a whole number"):
        rows(tmp_path, f"{header}a\tQ1\t3\t{value}\n", ANCHORS)
