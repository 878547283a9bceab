"""The index holds what the dataset holds, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.scripts import script
from i2e_pipeline.dataset.published import manifest_of, open_published
from i2e_pipeline.explore import index
from i2e_pipeline.explore.app import Explored
from i2e_pipeline.explore.queries import Queries
from tests.explore.conftest import made_up

assert made_up


def held(place: Path) -> list[Path]:
    return sorted(p for p in place.iterdir() if p.name != ".lock")


def images_of(folder: str) -> list[dict[str, object]]:
    tables = [pq.read_table(p, partitioning=None) for p in sorted((Path(folder) / "images").glob("*/*.parquet"))]
    rows: list[dict[str, object]] = pa.concat_tables(tables).to_pylist()
    return rows


def test_every_label_of_the_dataset_is_in_it_once(made_up: str, queries: Queries) -> None:
    rows = images_of(made_up)
    wanted = Counter(
        (row["image_id"], label["entity_id"], round(label["score"], 6), label["mention"], row["alt_text"])
        for row in rows
        for label in row["labels"]  # type: ignore[attr-defined]
    )
    found: Counter[object] = Counter()
    offset = 0
    while page := queries.images({}, offset, 240)["rows"]:
        offset += 240
        found.update((r["image_id"], r["entity_id"], round(r["score"], 6), r["mention"], r["alt_text"]) for r in page)
    assert sum(wanted.values()) == queries.facts["labels"] > queries.facts["images"] == len(rows)
    assert found == wanted


def test_a_row_is_found_where_it_lies(made_up: str, alone: Explored) -> None:
    for row in images_of(made_up)[::97]:
        place = alone.queries.place_of(str(row["image_id"]))
        assert place is not None
        path, number, unit = place
        assert path.startswith(f"images/unit={unit}/")
        read = alone.pictures.row(path, number)
        assert (read["image_id"], read["alt_text"]) == (row["image_id"], row["alt_text"])
        assert alone.pictures.stored(path, number) == row["image"]["bytes"]  # type: ignore[index]
    assert alone.queries.place_of("0" * 32) is None


def test_scripts_and_domains_are_counted(made_up: str, queries: Queries) -> None:
    rows = images_of(made_up)
    labels = [row for row in rows for _ in row["labels"]]  # type: ignore[attr-defined]
    assert dict(queries.facts["scripts"]) == Counter(script(str(row["alt_text"])) for row in labels)
    hosts = Counter(str(row["url"]).split("/")[2].lower() for row in labels)
    assert dict(queries.facts["domains"]) == dict(sorted(hosts.items(), key=lambda h: (-h[1], h[0]))[:200])


def test_domains_are_those_of_statistics_and_lists() -> None:
    """Catches: a password in an address that becomes a domain that pages show; another notion of a host than a list's
    that is to take these images out."""
    urls = ["http://user:secret@Example.org:8080/x", "münchen.de/a//b", "no address", None]
    rows = pa.table({"image_id": ["0" * 32] * 4, "alt_text": ["a"] * 4, "url": urls,
                     "labels": [[{"entity_id": 1, "score": 0.5}]] * 4})  # fmt: skip
    domains = index.label_rows(rows, 0, 0)["domain"].to_pylist()
    assert domains == ["example.org", "xn--mnchen-3ya.de", None, None]


def test_images_of_several_labels_hashes_and_ids_as_bytes() -> None:
    """As format 1 has them."""
    label = {"entity_id": 1, "class_index": 0, "score": 0.5}
    rows = pa.table(
        {
            "image_id": pa.array([b"\x01" * 16, b"\xff" * 16], pa.binary(16)),
            "alt_text": ["a", "б"],
            "perceptual_hash": pa.array([b"\x80" + b"\0" * 31, None], pa.binary(32)),
            "labels": [[label, {**label, "entity_id": 2}], []],
        }
    )
    labels = index.label_rows(rows, 3, 100)
    assert labels["image_id"].to_pylist() == ["01" * 16] * 2
    assert labels["row"].to_pylist() == [100, 100]
    assert labels["clip_score"].null_count == labels["domain"].null_count == 2
    images = index.image_rows(rows, 3, 100)
    assert images["image_id"].to_pylist() == ["01" * 16, "ff" * 16]
    assert images["h0"].to_pylist() == [1 << 63, None]
    assert images["h3"].to_pylist() == [0, None]


def test_another_dataset_has_another_index_and_the_old_one_goes(made_up: str, tmp_path: Path) -> None:
    """Catches: pages of yesterday's dataset, and indexes that fill the disk."""
    folder = shutil.copytree(made_up, tmp_path / "i2e")
    limits, place = index.Limits(), tmp_path / "index"
    index.open_index(str(folder), manifest_of(str(folder)), place, limits).close()
    (before,) = held(place)
    index.open_index(str(folder), manifest_of(str(folder)), place, limits).close()
    assert held(place) == [before]
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"dataset": "', '"dataset": "another-'))
    index.open_index(str(folder), manifest_of(str(folder)), place, limits, own=True).close()
    (after,) = held(place)
    assert after != before
    # An equal dataset that was written again: its files have other names.
    part = next((folder / "images").glob("*/*.parquet"))
    part.rename(part.with_name("part-99999-again.parquet"))
    made = Queries(index.open_index(str(folder), manifest_of(str(folder)), place, limits, own=True))
    assert held(place) not in ([before], [after])
    assert any(row["path"].endswith("part-99999-again.parquet") for row in made._rows("SELECT path FROM files"))


def test_a_kill_leaves_no_index_that_is_taken_for_whole(made_up: str, tmp_path: Path) -> None:
    script_ = (
        "import time; from i2e_pipeline.explore import index\n"
        "index._write_facts = lambda *a: (print('here', flush=True), time.sleep(60))\n"
        "from i2e_pipeline.dataset.published import manifest_of\nfrom pathlib import Path\n"
        f"index.open_index({made_up!r}, manifest_of({made_up!r}), Path({str(tmp_path / 'index')!r}), index.Limits())"
    )
    process = subprocess.Popen([sys.executable, "-c", script_], stdout=subprocess.PIPE, cwd=os.getcwd())
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"here"
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    whole = tmp_path / "index" / index.name_of(made_up, manifest_of(made_up), False)
    assert held(tmp_path / "index") not in ([], [whole])
    made = index.open_index(made_up, manifest_of(made_up), tmp_path / "index", index.Limits())
    assert Queries(made).facts["images"] == 3000
    # What the killed process left is gone once nobody works on it.
    assert held(tmp_path / "index") == [whole]


def test_what_is_no_index_is_said(made_up: str, tmp_path: Path) -> None:
    place = tmp_path / index.name_of(made_up, manifest_of(made_up), False)
    place.mkdir()
    (place / "index.duckdb").write_bytes(b"no database")
    with pytest.raises(I2EError, match="Delete it"):
        index.open_index(made_up, manifest_of(made_up), tmp_path, index.Limits())


def test_the_order_of_files_changes_nothing(made_up: str, tmp_path: Path, queries: Queries) -> None:
    """Catches: threads that change an index. Two builds hold the same rows in the same places."""
    made = index.open_index(made_up, manifest_of(made_up), tmp_path, index.Limits(threads=1))
    again = Queries(made)
    for table in ("labels", "images", "look", "names", "entities", "drawn"):
        assert again._rows(f"SELECT *, rowid FROM {table}") == queries._rows(f"SELECT *, rowid FROM {table}"), table


def test_entities_say_as_many_images_as_there_are(made_up: str, queries: Queries) -> None:
    published = open_published(made_up)
    found = {e["entity_id"]: e["images"] for e in queries.entities({}, most=5000)["rows"]}
    entities = published.entities
    depicted = entities.filter(pc.greater(entities["images"], 0))
    assert found == dict(zip(depicted["entity_id"].to_pylist(), depicted["images"].to_pylist(), strict=True))


def test_a_dataset_that_is_not_whole_is_refused(made_up: str, tmp_path: Path) -> None:
    folder = shutil.copytree(made_up, tmp_path / "i2e")
    next((folder / "images").glob("*/*.parquet")).unlink()
    started = time.monotonic()
    with pytest.raises(I2EError, match="not whole"):
        index.open_index(str(folder), manifest_of(str(folder)), tmp_path / "index", index.Limits())
    assert time.monotonic() - started < 60


def test_nothing_but_indexes_of_ours_is_removed(made_up: str, tmp_path: Path) -> None:
    """Catches: `--index ~`."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years")
    another = tmp_path / ("0" * 32)
    another.mkdir()
    index.open_index(made_up, manifest_of(made_up), tmp_path, index.Limits()).close()
    assert another.exists()
    index.open_index(made_up, manifest_of(made_up), tmp_path, index.Limits(), own=True).close()
    assert (tmp_path / "thesis" / "thesis.txt").exists()
