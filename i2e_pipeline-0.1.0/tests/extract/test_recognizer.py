"""The recognizer: loaded once, reduced to `ner`, the same for any batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from i2e_pipeline.extract.recognizer import as_title, fingerprint, load

TEXTS = ["Alan Turing in London", "", "no name here", "alan turing", "x" * 900, "Paris, Texas"] * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pipeline: it names something, always the same."""
    spacy = pytest.importorskip("spacy")
    folder = tmp_path_factory.mktemp("models") / "ner"
    spacy.util.fix_random_seed(1)
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    ner = nlp.add_pipe("ner")
    for label in ("PERSON", "LOC"):
        ner.add_label(label)
    nlp.initialize()
    nlp.to_disk(folder)
    return folder


def test_only_ner_is_loaded_and_only_once(model: Path) -> None:
    """Catches: a model per partition (Daft #2878)."""
    recognizer = load(str(model))
    assert recognizer.pipeline.pipe_names == ["ner"]
    assert load(str(model)).pipeline is recognizer.pipeline


def test_results_do_not_depend_on_the_batch(model: Path) -> None:
    rows, starts, ends, labels = load(str(model), 4).find(TEXTS)
    together = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), labels, strict=True))
    assert together == sorted(together)
    for row, text in enumerate(TEXTS[:6]):
        _, s, e, kinds = load(str(model), 1).find([text])
        assert [t[1:] for t in together if t[0] == row] == list(zip(s.tolist(), e.tolist(), kinds, strict=True))


def test_spans_lie_within_their_text(model: Path) -> None:
    rows, starts, ends, _ = load(str(model)).find(TEXTS)
    assert all(0 <= s < e <= len(TEXTS[r]) for r, s, e in zip(rows, starts, ends, strict=True))


def test_the_blank_recognizer_finds_nothing() -> None:
    rows, _, _, labels = load("blank").find(["Alan Turing"])
    assert len(rows) == len(labels) == 0


def test_the_fingerprint_is_of_the_content_not_of_the_place(model: Path, tmp_path: Path) -> None:
    """Catches: a retrained model under the same path counts as the same (Curator hashes paths only)."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(model, copy)
    assert fingerprint(str(copy)) == fingerprint(str(model))
    (copy / "ner" / "cfg").write_bytes((copy / "ner" / "cfg").read_bytes() + b" ")
    assert fingerprint(str(copy)) != fingerprint(str(model))
    assert fingerprint("blank") == "blank"


def test_what_is_no_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spacy download no_such_model"):
        load("no_such_model")
    with pytest.raises(ValueError, match=r"config\.cfg"):
        load(str(tmp_path))


def test_a_pipeline_without_ner_is_refused(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    spacy.blank("en").to_disk(tmp_path / "m")
    with pytest.raises(ValueError, match="no `ner`"):
        load(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("FLAG OF CHAD", "Flag of Chad"),
        ("flag of chad", "Flag of Chad"),
        ("Flag of Chad", "Flag of Chad"),
        ("D’ANJOU PEARS", "D’anjou Pears"),
        ("STRASSE ﬁN ŉ", "STRASSE ﬁN ŉ"),
        ("12 €", "12 €"),
    ],
)
def test_texts_of_one_case_become_titles_of_the_same_length(text: str, title: str) -> None:
    assert as_title(text) == title
    assert len(as_title(text)) == len(text)
