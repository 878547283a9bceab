"""The recognizer: loaded once, reduced to `ner`, the same for any batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from i2e_pipeline.commands import doctor
from i2e_pipeline.core.config import from_tree
from i2e_pipeline.extract import recognizer as recognizer_module
from i2e_pipeline.extract.recognizer import RecognizerError, as_title, check, fingerprint, load
from i2e_pipeline.stages import pipeline
from tests.engine.toys import write_shard

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


def test_a_vocabulary_keeps_the_first_words_and_no_more(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a vocabulary that grows with every text, and one that makes frequent words anew for every batch."""
    pipeline = load(str(model)).pipeline
    assert pipeline is not None
    vocabulary = pipeline.vocab
    strings = vocabulary.strings
    monkeypatch.setattr(recognizer_module, "_WORDS_KEPT", len(vocabulary) + 100)
    kept = [f"first{i}" for i in range(400)]
    gone = [f"later{i}" for i in range(400)]
    before = load(str(model)).find([*TEXTS, " ".join(kept)])
    load(str(model)).find([" ".join(gone)])
    assert all(word in strings for word in kept)
    assert not any(word in strings for word in gone)
    after = load(str(model)).find([*TEXTS, " ".join(kept)])
    assert [a.tolist() for a in before[:3]] == [a.tolist() for a in after[:3]]
    assert before[3] == after[3]


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


CONFIGS = {
    "cut": "[nlp\n",
    "binary": "\0\1\2",
    "of something else": "[other]\na = 1\n",
    "without a pipeline": '[nlp]\nlang = "en"\n',
    "without components": '[nlp]\nlang = "en"\npipeline = ["ner"]\n[components]\n',
    "without a meta.json": '[nlp]\nlang = "en"\npipeline = ["ner"]\n[components]\n[components.ner]\nfactory = "ner"\n',
}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("en_core_web_zzz", "neither a folder nor an installed .*spacy download en_core_web_zzz`, give the folder"),
        ("en-core-web", "neither a folder nor an installed spaCy pipeline: name a pipeline"),
        ("json.decoder", "neither a folder nor an installed spaCy pipeline: name a pipeline"),
        ("s3://bucket/model", "neither a folder nor an installed spaCy pipeline: name a pipeline"),
        ("json", r"json is a package of Python \(/.*/json\) that holds no spaCy pipeline \(no config\.cfg\)"),
        ("numpy", "numpy is a package of Python .* that holds no spaCy pipeline"),
        ("torch", "torch is a package of Python .* that holds no spaCy pipeline"),
        ("spacy", "spacy is a package of Python .* that holds no spaCy pipeline"),
        *((module, f"{module} is neither a folder nor an installed") for module in ("sys", "os", "six", "__main__")),
        ("", "is empty"),
        ("  ", "is empty"),
        ("{tmp}/empty", "empty is a folder that holds no spaCy pipeline"),
        ("{tmp}/none", "none is neither a folder nor an installed"),
        ("{tmp}/file", "file is neither a folder nor an installed"),
        ("{tmp}/with other files", "with other files is a folder that holds no spaCy pipeline"),
        *((f"{{tmp}}/{name}", f"{name} cannot be loaded by spaCy .*: ") for name in CONFIGS),
    ],
)
def test_what_is_no_model_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, said: str
) -> None:
    """Catches: a folder that the working folder holds in place of a module, a KeyError, and a run that dies after the
    dump."""
    pytest.importorskip("spacy")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "with other files").mkdir()
    (tmp_path / "with other files" / "model.bin").write_text("x")
    for name, content in {**CONFIGS, ".": CONFIGS["without components"], "sub": CONFIGS["cut"]}.items():
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.cfg").write_text(content)
    monkeypatch.chdir(tmp_path)
    named = model.format(tmp=tmp_path)
    with pytest.raises(RecognizerError, match=rf"extract\.recognizer.*[ /]{said}") as fault:
        check(named)
    assert 'or take "blank"' in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_model_that_cannot_find_names_is_said_before_any_stage_and_by_doctor(tmp_path: Path, model: Path) -> None:
    """Catches: a run that reads the dump for hours, and then cannot load the recognizer in a worker."""
    write_shard(tmp_path / "in" / "a.parquet", 1, 2)
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "ner" / "model").write_bytes((model / "ner" / "model").read_bytes()[:100])
    (tmp_path / "dump").write_text("[]")

    def no_spark() -> None:
        pytest.fail("Spark was started")

    for named in (str(tmp_path / "model"), "json", "en_core_web_zzz"):
        config = from_tree(
            {
                "output": str(tmp_path / "out"),
                "pairs": {"path": str(tmp_path / "in")},
                "knowledge_base": {"dump": str(tmp_path / "dump")},
                "extract": {"recognizer": named},
                "score": {"model": "ViT-B-32@x"},
            },
            "test",
        )
        with pytest.raises(RecognizerError, match=r"extract\.recognizer: ") as fault:
            pipeline(config, no_spark).run(["extract"])  # type: ignore[arg-type]
        (doctors,) = (c for name, c in doctor.checks(config) if name == "recognizer")
        with pytest.raises(RecognizerError, match=str(fault.value)[:40]):
            doctors()


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
