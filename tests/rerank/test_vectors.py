"""A bi-encoder's vectors of candidates: made once, found by id, and without effect on what is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from i2e_pipeline.core.schemas import CANDIDATE_VECTORS
from i2e_pipeline.rerank.encode import OF_CANDIDATES, encode_candidates
from i2e_pipeline.rerank.fusing import Fusing
from i2e_pipeline.rerank.questions import QUESTIONS
from i2e_pipeline.rerank.reranker import About, Reranker, begin
from i2e_pipeline.rerank.seen import Seen, build
from i2e_pipeline.rerank.vectors import CandidateVectors
from tests.rerank.small import encoder, planted


@pytest.fixture(scope="module")
def bi(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    torch.manual_seed(2)
    scorer = begin("bi", encoder(tmp_path_factory.mktemp("bert"))).eval()
    torch.nn.init.normal_(scorer.of_none.weight, std=0.3)
    return Reranker(scorer, About("bi", Fusing()))


def entities(questions: pa.Table) -> pa.RecordBatch:
    rows = {c["entity_id"]: c for q in questions.to_pylist() for c in q["candidates"]}
    columns = {name: [rows[e][name] for e in sorted(rows)] for name in OF_CANDIDATES}
    kinds = [pa.int64(), pa.string(), pa.string(), pa.string()]
    arrays = [pa.array(columns[name], kind) for name, kind in zip(OF_CANDIDATES, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=list(OF_CANDIDATES))


def stored(batches: list[pa.RecordBatch], folder: Path, bi: Reranker, key: str = "k") -> CandidateVectors:
    files = []
    for n, (table, made) in enumerate(encode_candidates(batches, bi)):
        assert table == "candidate_vectors"
        assert made.schema == CANDIDATE_VECTORS
        files.append(f"{folder}/{key}-{n}.parquet")
        pq.write_table(pa.Table.from_batches([made]), files[-1])
    return CandidateVectors.from_files(files, key, str(folder / "cache"))


def alike(questions: pa.Table) -> pa.Table:
    """The same with one description per entity, as a knowledge base has it."""
    described: dict[int, Any] = {}
    rows = questions.to_pylist()
    for row in rows:
        for candidate in row["candidates"]:
            first = described.setdefault(candidate["entity_id"], candidate)
            candidate.update({name: first[name] for name in ("name", "description")})
    return pa.Table.from_pylist(rows, questions.schema)


def test_known_vectors_change_no_answer(bi: Reranker, tmp_path: Path) -> None:
    questions = alike(planted(60)).select(QUESTIONS.names)
    whole = entities(questions)
    plain = bi.probabilities(questions)
    assert plain[1].std() > 0.01
    some = whole.slice(2, 3)
    for batches in ([whole], [some], [whole.slice(3), some]):
        known = stored(batches, tmp_path, bi, key=str(len(batches) + len(batches[0])))
        told = bi.probabilities(questions, known)
        assert np.abs(told[1] - plain[1]).max() <= 1 / 1024
    assert (bi.probabilities(questions, stored([], tmp_path, bi, "none"))[1] == plain[1]).all()


def test_an_entity_with_a_known_vector_is_not_encoded(bi: Reranker, tmp_path: Path, monkeypatch: Any) -> None:
    questions = alike(planted(30)).select(QUESTIONS.names)
    known = stored([entities(questions).slice(1)], tmp_path, bi)
    encoded: list[str] = []
    real = Reranker.vectors
    monkeypatch.setattr(Reranker, "vectors", lambda self, told: encoded.extend(told) or real(self, told))
    bi.probabilities(questions, known)
    assert len(encoded) == 1


def test_a_text_that_is_told_of_an_entity_does_not_meet_its_own_vector(bi: Reranker, tmp_path: Path) -> None:
    """Catches: kept vectors by which a text is told its own answer."""
    questions = alike(planted(30)).select(QUESTIONS.names)
    first = questions.to_pylist()[0]
    entity = first["candidates"][0]["entity_id"]
    build([(entity, first["text"], first["start"], first["end"])], tmp_path / "seen")
    told = Reranker(bi.scorer, bi.about, Seen(tmp_path / "seen"))
    known = stored([entities(questions)], tmp_path, told)
    with_known, without = told.probabilities(questions, known)[1], told.probabilities(questions)[1]
    assert np.abs(with_known - without).max() <= 1 / 1024
    assert without[0] == bi.probabilities(questions)[1][0]
    candidates = (c for q in questions.to_pylist() for c in q["candidates"])
    others = [n for n, c in enumerate(candidates) if c["entity_id"] == entity]
    assert (without[others[1:]] != bi.probabilities(questions)[1][others[1:]]).any()


def test_vectors_are_found_by_id(tmp_path: Path) -> None:
    for n, ids in enumerate(([7, 2], [4, 7])):
        rows = [{"entity_id": i, "vector": [float(i), float(n)]} for i in ids]
        pq.write_table(pa.Table.from_pylist(rows, CANDIDATE_VECTORS), tmp_path / f"{n}.parquet")
    found = CandidateVectors.from_files([f"{tmp_path}/{n}.parquet" for n in (0, 1)], "a", str(tmp_path / "cache"))
    there, vectors = found.lookup(np.array([4, 9, 7, 1]))
    assert there.tolist() == [True, False, True, False]
    assert vectors.tolist() == [[4.0, 1.0], [0, 0], [7.0, 0.0], [0, 0]]
