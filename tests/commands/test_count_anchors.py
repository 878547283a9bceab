"""From pages and a dump to anchors, and to surfaces with them: the job's own main on the tests' session."""

from __future__ import annotations

import bz2
import gzip
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from i2e_pipeline.core import config as configuration
from i2e_pipeline.stages import pipeline
from tests.wikidata.lines import instance_of, line
from tests.wikidata.pages import FOOT, head, multistream, page

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
Job = Callable[..., tuple[int, str]]


def on(**titles: str) -> dict[str, Any]:
    return {"sitelinks": {site: {"site": site, "title": name, "badges": []} for site, name in titles.items()}}


DUMP = [
    line(90, "Paris", **on(enwiki="Paris", dewiki="Paris")),
    line(142, "France", **on(enwiki="France", dewiki="Frankreich")),
    line(830149, "Paris", **on(enwiki="Paris, Texas")),
    line(1, "Louvre", **on(enwiki="Louvre", dewiki="Louvre")),
    line(2, "Paris", claims=instance_of(4167410), **on(enwiki="Paris (disambiguation)")),
    line(3, "Lone", **on(enwiki="Lone")),
    line(4, "Lutetia", **on(enwiki="Lutetia")),
]
"""Lines of a dump; Lutetia, a redirect, has an item of its own."""

FIRST = (
    page("Paris", "'''Paris''' is in [[France]]. Paris was [[Lutetia]]; PARIS it is. {{Infobox|[[France]] Louvre}} "
         "See the [[louvre|Louvre Museum]], the Louvre Museum and the Louvre.")
    + page("AccessibleComputing", "#REDIRECT [[Paris]]", redirect="Paris")
    + page("City of Light", "#REDIRECT [[AccessibleComputing]]", redirect="AccessibleComputing")
    + page("A ring", "x", redirect="B ring") + page("B ring", "x", redirect="C ring")
    + page("C ring", "x", redirect="A ring")
    + page("Lutetia", "x", redirect="Paris")
    + page("Template:City", "[[Paris]] [[Paris]]", 10)
)  # fmt: skip
SECOND = (
    page("France", "The capital is [[Paris]]. [[Paris, Texas|Paris]] is not. [[City of Light|Paris]] and [[paris]] "
         "are. [[A ring]] is. [[Paris (disambiguation)|Paris]] or [[No such page|Paris]]. Francs of Parisians.")
    + page("Paris (disambiguation)", "[[Paris, Texas]]\n{{disambig}}")
    + page("Empty", "")
)  # fmt: skip
GERMAN = page("Paris", "'''Paris''' liegt in [[Frankreich]]. Der [[Louvre]] in Paris.") + FOOT

ENGLISH = {
    ("Paris", "Q90", 2, 3),
    ("Paris", "Q830149", 1, 3),
    ("paris", "Q90", 1, 0),
    ("France", "Q142", 1, 0),
    ("Lutetia", "Q4", 1, 0),
    ("Louvre Museum", "Q1", 1, 1),
}
"""Of FIRST and SECOND: "Paris" stands in Paris as "Paris", "Paris" and, counted for it, "PARIS"."""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A multistream of two streams whose last page is cut, a German dump, a dump of Wikidata."""
    cut = page("Cut", "text [[Paris]]")
    english = multistream([head() + FIRST, SECOND + cut[: cut.index("</revision>") - 40]])
    (tmp_path / "enwiki-latest-pages-articles-multistream.xml.bz2").write_bytes(english)
    (tmp_path / "dewiki-latest-pages-articles.xml").write_text(head("de") + GERMAN)
    (tmp_path / "dump.json.bz2").write_bytes(bz2.compress(b"[\n" + b"\n".join(DUMP)[:-1] + b"\n]\n"))
    return tmp_path


@pytest.fixture
def job(spark: Any, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Job:
    """Runs the job on that world; gives its exit code and all that it said."""

    def run(*arguments: str, pages: str = "*wiki-*.xml*", output: str = "anchors.tsv") -> tuple[int, str]:
        path = ROOT / "jobs" / "count_anchors.py"
        given = ["--pages", f"{world}/{pages}", "--output", f"{world}/{output}", *arguments]
        given += ["--set", f"output={world}/out"]
        if not any("knowledge_base.dump" in a for a in arguments):
            given += ["--set", f"knowledge_base.dump={world}/dump.json.bz2"]
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(path), *given])
            patch.setattr(sys, "path", sys.path[:])
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(path), run_name="__main__")
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


def rows(path: Path) -> list[tuple[str, str, int, int | None]]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    names, *lines = (row.split("\t") for row in text.splitlines())
    assert names == ["surface", "qid", "count", "unlinked"]
    return [(s, q, int(n), int(u) if u else None) for s, q, n, u in lines]


def test_pages_and_a_dump_become_anchors(job: Job, world: Path, spark: Any) -> None:
    code, said = job("--languages", "en", "--min-links", "1")
    assert code == 0, said
    written = (world / "anchors.tsv").read_bytes()
    found = rows(world / "anchors.tsv")
    assert found == sorted(found, key=lambda r: (r[0], -r[2], r[1]))
    assert set(found) == ENGLISH
    for what in ("article 2", "redirect 6", "other_namespace 1", "disambiguation 1", "cut 1", "no_text 1"):
        assert what in " ".join(said.split()), said
    assert "1 of the 1 files of enwiki do not end with </mediawiki>" in said
    rejects = (world / "_anchors.tsv.rejects.tsv").read_text().splitlines()
    assert [row.split("\t")[:3] for row in rejects] == [
        ["site", "reason", "title"],
        ["enwiki", "cut", ""],
        ["enwiki", "no_text", "Empty"],
    ]
    assert "Cut" in rejects[1]
    assert not [p.name for p in world.iterdir() if p.is_dir() and p.name.startswith("_anchors")]
    # The same whatever the partitions are.
    before = spark.conf.get("spark.sql.shuffle.partitions")
    try:
        spark.conf.set("spark.sql.shuffle.partitions", "7")
        spark.conf.set("spark.sql.files.maxPartitionBytes", "300b")
        code, said = job("--languages", "en", "--min-links", "1")
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(before))
        spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert code == 0, said
    assert (world / "anchors.tsv").read_bytes() == written


def test_languages_are_added_up_and_the_knowledge_base_reads_them(job: Job, world: Path, spark: Any) -> None:
    code, said = job(output="anchors.tsv.gz")
    assert code == 0, said
    found = set(rows(world / "anchors.tsv.gz"))
    assert ("Paris", "Q90", 2, 5) in found
    assert ("Frankreich", "Q142", 1, 0) in found
    assert ("Louvre", "Q1", 1, 1) in found
    config = configuration.load(
        None,
        [f"output={world}/out", f"knowledge_base.dump={world}/dump.json.bz2", 
         f"knowledge_base.anchors={world}/anchors.tsv.gz"],
    )  # fmt: skip
    run, _ = pipeline(config, lambda: spark).run(["knowledge_base", "surfaces"])
    surfaces = {r.normal_form: r for r in run.read("kb/surfaces").collect()}
    # 0.3 is the guess for a label of one word, worth 5 occurrences: 4 links and 5 without.
    assert surfaces["paris"].link_probability == pytest.approx((0.3 * 5 + 4) / (5 + 4 + 5))
    assert surfaces["paris"].candidates[0].entity_id == 90
    assert surfaces["frankreich"].link_probability > 0.3


def test_redirects_may_come_from_tables(job: Job, world: Path) -> None:
    (world / "enwiki-latest-page.sql.gz").write_bytes(
        gzip.compress(b"-- MySQL dump\nCREATE TABLE `page` (\nINSERT INTO `page` VALUES (1,0,'No_such_page',1,0);\n")
    )
    code, said = job("--languages", "en", "--redirects", f"{world}/enwiki-latest-page.sql.gz")
    assert code == 2
    assert "the table `redirect` of enwiki is not among them" in said
    (world / "enwiki-latest-redirect.sql.gz").write_bytes(
        gzip.compress(b"-- MySQL dump\nCREATE TABLE `redirect` (\nINSERT INTO `redirect` VALUES (1,0,'Lone','','');\n")
    )
    code, said = job("--languages", "en", "--redirects", f"{world}/enwiki-latest-*.sql.gz")
    assert code == 0, said
    found = {(s, q): n for s, q, n, _ in rows(world / "anchors.tsv")}
    assert found[("Paris", "Q3")] == 1
    assert found[("Paris", "Q90")] == 1  # the page City of Light is no redirect now


def test_rare_surfaces_are_not_looked_for(job: Job, world: Path) -> None:
    code, said = job("--languages", "en", "--min-links", "2")
    assert code == 0, said
    found = {(s, q): u for s, q, _, u in rows(world / "anchors.tsv")}
    assert found[("Paris", "Q90")] == 3
    assert found[("Louvre Museum", "Q1")] is None


def test_what_cannot_be_counted_is_said_and_leaves_no_file(job: Job, world: Path) -> None:
    other = world / "other.json"
    other.write_bytes(b"[\n" + line(5, "x", **on(frwiki="X"))[:-1] + b"\n]\n")
    code, said = job("--set", f"knowledge_base.dump={other}")
    assert code == 2
    assert "links of dewiki, enwiki leads to an item" in said
    assert "has no sitelinks of dewiki, enwiki" in said
    code, said = job("--languages", "en,fr")
    assert code == 2
    assert "no file of --pages is in fr; they are in de, en" in said
    (world / "frwiki-pages.xml").write_text("<html>404</html>")
    code, said = job(pages="frwiki-pages.xml")
    assert code == 2
    assert "--pages: " in said
    assert "is an HTML page" in said
    cut = (world / "enwiki-latest-pages-articles-multistream.xml.bz2").read_bytes()[:-50]
    (world / "enwiki-cut.xml.bz2").write_bytes(cut)
    code, said = job(pages="enwiki-cut.xml.bz2")
    assert code != 0
    assert "enwiki-cut.xml.bz2 is damaged or cut short" in said
    assert {p.name for p in world.iterdir() if "anchors.tsv" in p.name} <= {"_anchors.tsv.rejects.tsv"}
