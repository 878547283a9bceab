"""Faulty sources as people have them: what is made of each file in `faults/dumps` of the real data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from i2e_pipeline.core import files
from wikidata import sources
from wikidata.items import read_items
from wikidata.source_files import DUMP, Read, SourceError, doubt, lines, recognised, unclosed

WHOLE = 617
"""Items of a dump there that is whole."""
DUMPS: dict[str, str | None] = {
    "plain.json": None,
    "bom.json": None,
    "crlf.json": None,
    "jsonl.jsonl": None,
    "first_on_bracket.json": None,
    "single.json.bz2": None,
    "multi.json.bz2": None,
    "multi.json.gz": None,
    "bz2_named_json.json": None,
    "dump.json.xz": None,
    "dump.json.zst": None,
    "10:30": None,
    "a,b": None,
    "date=2024-01-01": None,
    "with space": None,
    "{x}": None,
    "é": None,
    "sub": None,
    "marks": None,
    "html.json.bz2": "is an HTML page: download the file again",
    "pages.xml.bz2": r"is XML \(within bz2\): take the file in the other form",
    "truthy.nt.bz2": r"is RDF .*\(within bz2\): take the file in the other form",
    "dump.json.zip": "is a zip archive: unpack it first",
    "dump.tar.gz": r"is a tar archive \(within gz\): unpack it first",
    "empty.json": "is empty: download the file again",
    "cut.json": "the array that it opens does not close",
    "cut.json.bz2": r"cut\.json\.bz2 is damaged or cut short \(.*: download the file again",
    "cut.json.gz": r"cut\.json\.gz is damaged or cut short \(.*: download the file again",
    "cut_multi.json.bz2": r"cut_multi\.json\.bz2 is damaged or cut short \(.*: download the file again",
    "damaged.json.bz2": r"damaged\.json\.bz2 is damaged or cut short \(.*: download the file again",
}
"""What is said of each dump; None: it is read whole."""

EIGHT = [81, 197, 500, 503, 967, 1420, 2274, 5532]
TABLES: dict[str, str | int] = {
    "pop.csv": 8,
    "pop_bom.csv": 8,
    "pop_crlf.csv": 8,
    "pop_blank_end.csv": 8,
    "pop_no_header.csv": 8,
    "pop_no_header": 8,
    "pop_quoted.csv": 8,
    "pop_spaces.csv": 8,
    "pop_bare.csv": "line 2: '81,10' .*: qid is not Q and a positive number",
    "pop_inf.csv": "line 2: 'Q81,Infinity' .*: number is not a finite number",
    "pop_inf2.csv": "line 2: 'Q81,Infinity' .*: number is not a finite number",
    "pop_lower.csv": "line 2: 'q81,10' .*: qid is not Q and a positive number",
    "pop_properties.csv": "line 3: 'P31,9' .*: qid is not Q and a positive number",
    "pop_semicolon.csv": "line 1: 'qid;number' .*: it has 1 column; is it split by ';'",
    "pop_tabs.csv": r"line 1: 'qid\\tnumber' .*: it has 1 column; is it split by '\\t'",
    "pop_swapped.csv": "line 2: '10,Q81' .*: number is not a finite number",
    "pop_thousands.csv": "line 2: 'Q81,10,000' .*: it has 3 columns instead of 2",
    "anc.tsv": 8,
    "anc_no_header.tsv": 8,
    "anc_odd.tsv": 8,
    "anc_nul.tsv": 3,
    "anc_cr_inside.tsv": 2,
    "anc_latin1.tsv": 1,
    "anc_empty_surface.tsv": r"line 2: '\\tQ81\\t3' .*: surface is empty",
    "anc_float.tsv": r"line 2: 'x\\tQ81\\t3\.0' .*: count is not a whole number",
    "anc_tab_inside.tsv": "line 2: .* it has 4 columns instead of 3",
}
"""How many rows each popularity and anchor file has, or what is said of it."""


@pytest.fixture(scope="module")
def faults(real_data: Path) -> Path:
    return real_data / "faults" / "dumps"


def read(path: Path) -> Counter[str]:
    """What the lines of a dump are. Raises SourceError, also where it can hardly be whole."""
    found = recognised([f.path for f in files.find((str(path),), "")], DUMP, files.open_filesystem)
    numbers = pa.RecordBatch.from_pydict({"number": list(range(len(found)))})
    counted: Counter[str] = Counter()
    for table, rows in read_items(lines([numbers], found)):
        if table == "rejects":
            counted.update(rows["reason"].to_pylist())
        elif table == "brackets":
            counted.update(opens=sum(rows["opens"].to_pylist()), closes=sum(rows["closes"].to_pylist()))
        else:
            counted[table] += rows.num_rows
    rejected = {k: n for k, n in counted.items() if k not in ("entities", "names", "opens", "closes")}
    said = doubt(Read(counted["entities"], rejected, counted["opens"], counted["closes"]), found)
    assert unclosed(found) in (None, said)
    if said is not None:
        raise SourceError(said)
    return counted


def test_every_faulty_source_has_its_test(faults: Path) -> None:
    assert {path.name for path in faults.iterdir()} == {*DUMPS, *TABLES}


@pytest.mark.parametrize("name", [name for name, said in DUMPS.items() if said is None])
def test_a_dump_is_read_whole_however_it_is_packed_named_and_written(faults: Path, name: str) -> None:
    counted = read(faults / name)
    assert counted["entities"] == WHOLE
    assert set(counted) <= {"entities", "names", "bracket", "opens", "closes"}


@pytest.mark.parametrize("name", [name for name, said in DUMPS.items() if said is not None])
def test_a_dump_that_is_none_or_a_part_is_an_error_with_the_remedy(faults: Path, name: str) -> None:
    with pytest.raises(SourceError, match=str(DUMPS[name])):
        read(faults / name)


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_popularity_and_anchors_are_all_read_or_the_first_bad_one_is_named(faults: Path, name: str) -> None:
    form: Any = sources._POPULARITY if name.startswith("pop") else sources._ANCHORS
    survey = sources._Survey()

    def ids() -> list[int]:
        named = [f.path for f in files.find((str(faults / name),), "")]
        found = [
            qid
            for source in recognised(named, form.said, files.open_filesystem)
            for columns in sources.parsed(source, form, survey)
            for qid in columns["qid"].to_pylist()
        ]
        return [int(qid[1:]) for qid in found]

    wanted = TABLES[name]
    if isinstance(wanted, str):
        with pytest.raises(SourceError, match=rf"{name}, {wanted}"):
            ids()
        return
    assert set(ids()) == set(EIGHT[:wanted] if name != "anc_nul.tsv" else [81, 197, 500])
    assert survey.rows >= wanted
    assert survey.not_utf8 == (1 if name == "anc_latin1.tsv" else 0)
