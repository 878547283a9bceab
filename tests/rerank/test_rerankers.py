"""The three rerankers: what they see, that they can learn, that they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2e_pipeline.core.config import content
from i2e_pipeline.rerank import training
from i2e_pipeline.rerank.fusing import Fusing, best_of, fit
from i2e_pipeline.rerank.questions import QUESTIONS, laid_flat, places_of
from i2e_pipeline.rerank.reranker import KINDS, About, NoReranker, begin, load, load_once, save
from i2e_pipeline.rerank.scorer import TEXT_TOKENS, marked, scores_of
from i2e_pipeline.rerank.training import Training, TrainingError
from tests.rerank.small import encoder, planted


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoder(tmp_path_factory.mktemp("bert"))


def random(kind: str, bert: str) -> Any:
    """A reranker with random weights throughout, so that all of its inputs tell in its scores."""
    torch.manual_seed(1)
    made = begin(kind, bert)
    for parameter in made.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_question_gets_does_not_depend_on_the_others(kind: str, bert: str) -> None:
    model, asked = random(kind, bert), laid_flat(planted(50))
    score, none = scores_of(model, asked, np.arange(50))
    assert score.std() > 0.01
    some = np.arange(3, 50, 4)
    again = scores_of(model, asked, some, batch=16)
    assert (again[0][asked.places(some)] == score[asked.places(some)]).all()
    assert (again[1][some] == none[some]).all()
    assert (again[0][asked.places(np.setdiff1d(np.arange(50), some))] == 0).all()


@pytest.mark.parametrize("kind", ["cross", "bi"])
def test_what_a_candidate_gets_does_not_depend_on_order_and_company(kind: str, bert: str) -> None:
    """Catches: candidates that see each other, or places that count."""
    model, table = random(kind, bert), planted(20)
    rows = table.to_pylist()
    turned = pa.Table.from_pylist([{**r, "candidates": r["candidates"][::-1]} for r in rows], table.schema)
    alone = pa.Table.from_pylist([{**r, "candidates": r["candidates"][:1]} for r in rows], table.schema)
    score, of_turned, of_alone = (scores_of(model, laid_flat(t), np.arange(20))[0] for t in (table, turned, alone))
    asked = laid_flat(table)
    for n in range(20):
        start, end = asked.range_of(n)
        assert of_turned[start:end][::-1] == pytest.approx(score[start:end], abs=0.002)
        assert of_alone[n] == pytest.approx(score[start], abs=0.002)


def test_a_decoder_is_shown_candidates_in_any_order_while_it_learns(bert: str) -> None:
    model, asked = random("fusion", bert), laid_flat(planted(20))
    numbers = np.arange(20)
    still, shuffled = model.rows(asked, numbers), model.rows(asked, numbers, order=np.random.default_rng(0))
    assert (still.place != shuffled.place).any()
    texts = model.tokenizer
    of = asked.mention
    for row, (question, place) in enumerate(zip(of, shuffled.place, strict=True)):
        read = texts.decode(shuffled.ids[question, place - 1])
        assert read.startswith(f"[CLS] {place} ")
        assert asked.told[row].split("of the ")[1] in read
    assert still.place.tolist() == [i - asked.range_of(n)[0] + 1 for i, n in enumerate(of)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_rule_is_learned(kind: str, bert: str, tmp_path: Path) -> None:
    """Before, one of two to four is right by chance; none of these is right where nothing agrees."""
    table = planted(1600)
    settings = Training(epochs=10, batch=32, rate=1e-3, head_rate=1e-3, frozen=-1, measure_steps=10_000)
    torch.manual_seed(0)
    model = begin(kind, bert)
    figures = training.train(model, table, tmp_path / "out", settings)
    assert figures["right_before"] < 0.6
    assert figures["right"] >= 0.95 * figures["within"]
    asked = laid_flat(fresh := planted(300, seed=5))
    chosen = places_of(fresh["chosen"].to_pylist(), asked)
    fusing = Fusing(**figures["fusing"])
    p, q = fusing.probabilities(asked, *scores_of(model, asked, np.arange(300)))
    told = np.where(q > p[best_of(p, asked)], -1, best_of(p, asked))
    assert (told == chosen).mean() >= 0.95
    # How sure it is, is how often it is right.
    sure = np.maximum(q, p[best_of(p, asked)])
    assert abs(sure.mean() - (told == chosen).mean()) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(kind: str, bert: str, tmp_path: Path) -> None:
    table = planted(200)
    settings = Training(epochs=2, batch=16, below=0.97, measure_steps=5)

    def trained(folder: str, *stops: int) -> Any:
        for stop in (*stops, 10_000):
            torch.manual_seed(settings.seed)
            model = begin(kind, bert)
            steps = iter(range(stop))
            figures = training.train(
                model, table, tmp_path / folder, settings, stop=lambda steps=steps: next(steps, None) is None
            )
            assert figures["finished"] == (stop == 10_000)
        curve = [json.loads(line) for line in (tmp_path / folder / "curve.jsonl").read_text().splitlines()]
        return model.state_dict(), [{k: v for k, v in line.items() if k not in ("minutes", "loss")} for line in curve]

    (at_once, curve), (in_parts, same) = trained("a"), trained("b", 3, 7)
    assert curve == same
    assert len(curve) >= 4
    assert all(torch.equal(at_once[name], in_parts[name]) for name in at_once)


@pytest.mark.parametrize("other", ["settings", "examples", "an answer", "kind", "nothing"])
def test_a_training_of_something_else_is_not_gone_on_from(other: str, bert: str, tmp_path: Path) -> None:
    def train(kind: str, rows: pa.Table, settings: Training) -> Any:
        torch.manual_seed(0)  # the same new layers, as the command makes them
        return training.train(begin(kind, bert), rows, tmp_path, settings, stop=lambda: True)

    table, settings = planted(100), Training(batch=8, epochs=1)
    turned = table.to_pylist()
    turned[5]["chosen"] = 99
    train("cross", table, settings)
    if other == "nothing":
        assert not train("cross", table, settings)["finished"]
        return
    with pytest.raises(TrainingError, match="another model, other settings or other examples"):
        train(
            "bi" if other == "kind" else "cross",
            {"examples": planted(101), "an answer": pa.Table.from_pylist(turned, table.schema)}.get(other, table),
            Training(batch=8, epochs=1, rate=1e-3) if other == "settings" else settings,
        )


def test_too_few_examples_are_said(bert: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at least 32"):
        training.train(begin("cross", bert), planted(10), tmp_path, Training())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_reranker_is_the_same(kind: str, bert: str, tmp_path: Path) -> None:
    model, table = random(kind, bert), planted(30)
    asked = laid_flat(table)
    save(model, str(tmp_path), About(kind, Fusing(0.8, 1.2, -0.1), figures={"right": 0.9}, trained={"seed": 1}))
    loaded = load(str(tmp_path))
    assert loaded.about == About(kind, Fusing(0.8, 1.2, -0.1), figures={"right": 0.9}, trained={"seed": 1})
    score, none = scores_of(model, asked, np.arange(30))
    probability, again = loaded.probabilities(table.select(QUESTIONS.names))
    assert (again == score).all()
    assert probability == pytest.approx(Fusing(0.8, 1.2, -0.1).probabilities(asked, score, none)[0])


def test_a_folder_that_has_become_another_rerankers_is_refused(bert: str, tmp_path: Path) -> None:
    """Catches: workers that start later and answer by another model than those before."""
    folder = str(tmp_path / "made")
    save(random("cross", bert), folder, About("cross", Fusing()))
    found = content(folder)
    assert load_once(folder, found) is load_once(folder, found)
    save(random("cross", bert), folder, About("cross", Fusing(0.5)))
    with pytest.raises(NoReranker, match="another reranker than when the run began"):
        load_once(folder, found, batch=4)


@pytest.mark.parametrize("damage", ["none", "kind", "json", "heads", "weights"])
def test_a_folder_that_holds_no_reranker_is_named(damage: str, bert: str, tmp_path: Path) -> None:
    folder = tmp_path / "reranker"
    if damage != "none":
        save(random("cross", bert), str(folder), About("cross", Fusing()))
    about = folder / "reranker.json"
    if damage == "kind":
        about.write_text(about.read_text().replace("cross", "crossed"))
    elif damage == "json":
        about.write_text("{")
    elif damage == "heads":
        save(random("bi", bert), str(tmp_path / "bi"), About("bi", Fusing()))
        (folder / "heads.safetensors").write_bytes((tmp_path / "bi" / "heads.safetensors").read_bytes())
    elif damage == "weights":
        (folder / "model" / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(NoReranker, match=str(folder)):
        load(str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_none_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(NoReranker, match=f"--model {tmp_path}"):
        begin(kind, str(tmp_path))


@given(
    st.text(alphabet="abc xyz,é中", max_size=300), st.integers(0, 300), st.integers(1, 60), st.integers(12, TEXT_TOKENS)
)
def test_a_text_is_cut_around_its_mention(tokenizer: Any, text: str, start: int, length: int, most: int) -> None:
    start = min(start, max(len(text) - 1, 0))
    end = min(start + length, len(text))
    row = {"text": text, "start": start, "end": end, "candidates": []}
    asked = laid_flat(pa.Table.from_pylist([row], QUESTIONS))
    [(tokens, first, last)] = marked(tokenizer, asked, [0], most)
    assert len(tokens) <= most
    mention = tokenizer(text[start:end], add_special_tokens=False)["input_ids"][: most // 2]
    assert tokens[first : first + len(mention)] == mention
    assert last == first + max(len(mention), 1)
    assert tokenizer.decode(tokens[first - 1 : first]) == "["
    whole = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (text[:start], text[end:])]
    if sum(whole) + len(mention) + 2 <= most:
        assert len(tokens) == sum(whole) + len(mention) + 2  # nothing is cut that has room


@pytest.fixture(scope="module")
def tokenizer(bert: str) -> Any:
    return begin("cross", bert).tokenizer


def test_fusing_is_fitted_to_what_is_true() -> None:
    """Of scores that are half too large, and of a fast path that is right, the likeliest weights are found."""
    draw = np.random.default_rng(0)
    count = 4000
    rows = [
        {
            "text": "x",
            "start": 0,
            "end": 1,
            "candidates": [
                {"entity_id": e, "name": "n", "description": None, "coarse_type": None, "probability": share}
                for e, share in zip((1, 2, 3), draw.dirichlet(np.ones(4)), strict=False)
            ],
        }
        for _ in range(count)
    ]
    asked = laid_flat(pa.Table.from_pylist(rows, QUESTIONS))
    score, none = draw.normal(size=3 * count), np.zeros(count)
    p, q = Fusing(1.0, 0.5, 0.7).probabilities(asked, score, none)
    drawn = draw.random(count)
    by_question = np.cumsum(np.concatenate([p.reshape(count, 3), q[:, None]], axis=1), axis=1)
    place = (drawn[:, None] > by_question).sum(axis=1)
    chosen = np.where(place < 3, np.arange(count) * 3 + place, -1)
    found = fit(asked, score, none, chosen, np.arange(count))
    assert found.weight == pytest.approx(0.5, abs=0.07)
    assert found.none == pytest.approx(0.7, abs=0.2)


def test_probabilities_of_a_mention_and_of_none_are_one() -> None:
    asked = laid_flat(planted(50))
    draw = np.random.default_rng(0)
    p, q = Fusing(0.7, 1.3, 0.2).probabilities(asked, draw.normal(size=len(asked.mention)), draw.normal(size=50))
    assert np.bincount(asked.mention, p, 50) + q == pytest.approx(np.ones(50))
    p, q = Fusing().probabilities(asked, np.zeros(len(asked.mention)), np.zeros(50))
    assert p == pytest.approx(np.exp(asked.log_probability))  # where it says nothing, the fast path's stay


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_that_are_read(kind: str, bert: str) -> None:
    model, asked = begin(kind, bert), laid_flat(planted(12))
    numbers = np.arange(12)
    rows = model.rows(asked, numbers)
    if kind == "cross":
        read = int((rows.part >= 0).sum())
    elif kind == "bi":
        read = int(rows.filled.sum() + rows.told_filled.sum())
    else:
        read = int(rows.filled.sum())
    assert model.tokens(asked, numbers) == read > 0
    assert model.tokens(asked, numbers[:0]) == 0
