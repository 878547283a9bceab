from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.core import arrays
from i2e_pipeline.core.schemas import ENTITY_VECTORS
from i2e_pipeline.images.encoder import Encoder
from i2e_pipeline.score import entity_vectors
from i2e_pipeline.score.entity_vectors import (
    EXEMPLARS,
    EntityVectors,
    MissingVectorError,
    Templates,
    encode_entities,
    entity_text,
    most_famous,
)
from wikidata.types import TYPES, UNKNOWN


@pytest.mark.parametrize(
    ("template", "described", "bare"),
    [
        ("{name}, {description}", "Mars, a planet", "Mars"),
        ("a photo of {name} ({description})", "a photo of Mars (a planet)", "a photo of Mars"),
        ("{name}: {description}.", "Mars: a planet.", "Mars."),
        ("{name}", "Mars", "Mars"),
    ],
)
def test_without_a_description_its_place_goes_too(template: str, described: str, bare: str) -> None:
    assert entity_text(template, "Mars", "a planet") == described
    assert entity_text(template, "Mars", None) == entity_text(template, "Mars", "") == bare


def test_names_with_braces_stand_as_they_are() -> None:
    assert entity_text("{name}, {description}", "a {description} b", "c {name}") == "a {description} b, c {name}"


def entities(*rows: tuple[int, str, str | None]) -> pa.RecordBatch:
    ids, names, descriptions = zip(*rows, strict=True)
    return pa.record_batch(
        {
            "entity_id": pa.array(ids, pa.int64()),
            "name": names,
            "description": pa.array(descriptions, pa.string()),
            "coarse_type": pa.array([None, "region", "taxon"][: len(ids)], pa.string()),
            "visual": pa.array([0.3] * len(ids), pa.float32()),
            "fame": pa.array([None, 2.0, 3.0][: len(ids)], pa.float32()),
        }
    )


def test_each_entity_gets_the_vector_of_its_text(encoder: Encoder) -> None:
    batch = entities((5, "Mars", None), (3, "Turkey", "country"), (9, "Mars", None))
    ((table, vectors),) = encode_entities([batch], encoder, Templates())
    assert table == "entity_vectors"
    assert vectors.schema == ENTITY_VECTORS
    assert vectors["entity_id"].to_pylist() == [5, 3, 9]
    rows = np.array(vectors["vector"].to_pylist(), dtype=np.float32)
    assert np.allclose(rows, encoder.texts(["Mars", "Turkey, country", "Mars"]), atol=1e-6)
    assert vectors["described"].to_pylist() == [False, True, False]
    names = np.array(vectors["name_vector"].to_pylist(), dtype=np.float32)
    assert np.allclose(names, encoder.texts(["Mars", "Turkey", "Mars"]), atol=1e-6)
    bare, told, _ = vectors["description_vector"].to_pylist()
    assert bare is None
    assert np.allclose(told, encoder.texts(["country"])[0], atol=1e-6)


def test_what_is_known_besides_is_found_by_id(encoder: Encoder, tmp_path: Path) -> None:
    batch = entities((5, "Mars", None), (3, "Turkey", "country"), (9, "Pan", "ape"))
    ((_, vectors),) = encode_entities([batch], encoder, Templates())
    files = write(tmp_path, pa.Table.from_batches([vectors]))
    store = EntityVectors.from_files(files, cache=str(tmp_path / "cache"))
    assert store.of("type", [9, 5, 3]).tolist() == [TYPES.code("taxon"), UNKNOWN, TYPES.code("region")]
    assert np.isnan(store.of("fame", [5])).all()
    assert store.of("fame", [3, 9]).tolist() == [2.0, 3.0]
    assert not store.of("description_vector", [5]).any()
    assert store.of("description_vector", [9])[0] @ encoder.texts(["ape"])[0] == pytest.approx(1, abs=1e-3)


def test_the_most_famous_of_each_type_are_the_same_however_they_come() -> None:
    rows = [("taxon", 4, 1.0), ("taxon", 2, 3.0), ("film", 9, 0.5), ("taxon", 3, 1.0), ("taxon", 1, 0.0)]
    batches = [pa.RecordBatch.from_pylist([dict(zip(EXEMPLARS.names, r, strict=True))], EXEMPLARS) for r in rows]
    wanted = [("film", 9), ("taxon", 2), ("taxon", 3)]

    def found(parts: list[pa.RecordBatch]) -> list[tuple[str, int]]:
        return [(r["coarse_type"], r["entity_id"]) for b in most_famous(parts, 2) for r in b.to_pylist()]

    assert found(batches) == found(batches[::-1]) == found(pa.Table.from_batches(batches).to_batches()) == wanted
    assert found([*most_famous(batches[:2], 2), *most_famous(batches[2:], 2)]) == wanted
    assert found([]) == []


def table(ids: list[int], width: int = 4) -> pa.Table:
    rows = [np.random.default_rng(i).normal(size=width) for i in ids]
    columns = {"entity_id": pa.array(ids), "vector": [(r / np.linalg.norm(r)).tolist() for r in rows]}
    columns["described"] = pa.array([i % 2 == 0 for i in ids])
    return pa.table(columns)


def write(folder: Path, *tables: pa.Table) -> list[str]:
    paths = [str(folder / f"{i}.parquet") for i in range(len(tables))]
    for path, one in zip(paths, tables, strict=True):
        pq.write_table(one, path)
    return paths


def test_files_are_laid_out_sorted_and_looked_up(tmp_path: Path) -> None:
    files = write(tmp_path, table([7, 2, 9]), table([4, 2]), table([]))
    store = EntityVectors.from_files(files, cache=str(tmp_path / "cache"))
    assert (len(store), store.width) == (4, 4)
    expected = np.array(table([9, 2, 9, 4])["vector"].to_pylist())
    assert np.abs(store.lookup([9, 2, 9, 4]) - expected).max() < 1e-3  # float16
    assert np.allclose(np.linalg.norm(store.lookup([7, 4]), axis=1), 1, atol=1e-6)
    assert store.described([9, 4]).tolist() == [False, True]
    assert store.lookup([]).shape == (0, 4)


def test_a_missing_entity_is_named(tmp_path: Path) -> None:
    store = EntityVectors.from_files(write(tmp_path, table([2, 7])), cache=str(tmp_path / "cache"))
    with pytest.raises(MissingVectorError, match="Q5 and 1 more has no vector"):
        store.lookup([2, 99, 5])


def test_an_empty_table_is_no_error_until_asked(tmp_path: Path) -> None:
    store = EntityVectors.from_files(write(tmp_path, table([])), cache=str(tmp_path / "cache"))
    assert len(store) == 0
    with pytest.raises(MissingVectorError):
        store.lookup([1])


def test_changed_files_are_another_store(tmp_path: Path) -> None:
    """Catches: a cache named by paths alone serves the vectors of the run before."""
    files = write(tmp_path, table([2]))
    EntityVectors.from_files(files, cache=str(tmp_path / "cache"))
    files = write(tmp_path, table([2, 3]))
    assert len(EntityVectors.from_files(files, cache=str(tmp_path / "cache"))) == 2


def test_a_layout_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, table([2]))
    whole = entity_vectors._matrix

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entity_vectors, "_matrix", killed)
    with pytest.raises(KeyboardInterrupt):
        EntityVectors.from_files(files, cache=str(tmp_path / "cache"))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [".lock"]
    monkeypatch.setattr(entity_vectors, "_matrix", whole)
    assert len(EntityVectors.from_files(files, cache=str(tmp_path / "cache"))) == 1


def _open(files: list[str], cache: str, out: object) -> None:
    out.put(float(EntityVectors.from_files(files, cache=cache).lookup([7]).sum()))  # type: ignore[attr-defined]


def test_workers_that_start_together_lay_out_one_store(tmp_path: Path) -> None:
    files = write(tmp_path, table(list(range(500))))
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [context.Process(target=_open, args=(files, str(tmp_path / "cache"), out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert len({out.get(timeout=60) for _ in workers}) == 1
    for worker in workers:
        worker.join()
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 1


def test_old_stores_are_dropped(tmp_path: Path) -> None:
    for i in range(arrays.KEPT_STORES + 2):
        EntityVectors.from_files(write(tmp_path, table([i])), cache=str(tmp_path / "cache"))
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == arrays.KEPT_STORES


def test_two_models_in_one_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two models' vectors"):
        EntityVectors.from_files(write(tmp_path, table([1]), table([2], width=5)), cache=str(tmp_path / "cache"))
