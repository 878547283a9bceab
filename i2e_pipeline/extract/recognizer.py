"""Names in running text by a spaCy pipeline's `ner`.

Only `ner` and what it listens to are loaded; a worker process loads a model once. Texts all in capitals or all in small
letters are given to the model as titles ("FLAG OF CHAD" as "Flag of Chad"). On a held-out NER set this lifts the
recall of spans from .53 to .59 for capitals and from .54 to .59 for small letters; for small letters it costs some
precision (benchmarks/extract.py).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from i2e_pipeline.core.errors import I2EError

I64 = npt.NDArray[np.int64]

BLANK = "blank"
"""Name of the recognizer that finds nothing: gazetteer only."""

_WORDS_KEPT = 30_000
"""Words that a worker's vocabulary holds for good, some 20 MB; a batch of texts may go beyond."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_SMALL = (
    "a an and as at but by de del der des du el en et for from in into is la le les of on or the to und via vs with"
)
_SMALL_WORDS = frozenset(_SMALL.split())


class Recognizer:
    """A spaCy pipeline reduced to its named entities. Made by `load`; a blank one (`pipeline` None) finds nothing."""

    def __init__(self, pipeline: Any | None, fingerprint: str, batch_size: int = 256) -> None:
        self.pipeline = pipeline
        self.fingerprint = fingerprint
        self.batch_size = batch_size

    def find(self, texts: list[str]) -> tuple[I64, I64, I64, list[str]]:
        """The names in each text: rows, starts, ends (characters) and labels, ordered by row and start.

        The result for a text does not depend on the other texts.
        """
        if self.pipeline is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), []
        # Neighbours of like length share a padded batch.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[tuple[int, int, int, str]] = []
        # Without a zone the vocabulary keeps every word that it ever saw; in one it makes each anew, which takes three
        # times as long as to find it. So a worker keeps the words that it sees first, which are the frequent ones.
        has_room = len(self.pipeline.vocab) < _WORDS_KEPT
        with nullcontext() if has_room else self.pipeline.memory_zone():
            documents = self.pipeline.pipe((as_title(texts[i]) for i in order), batch_size=self.batch_size)
            for row, document in zip(order, documents, strict=True):
                found += [(row, span.start_char, span.end_char, span.label_) for span in document.ents]
        found.sort()
        places = np.array([f[:3] for f in found], dtype=np.int64).reshape(-1, 3)
        return places[:, 0], places[:, 1], places[:, 2], [f[3] for f in found]


def as_title(text: str) -> str:
    """The text with its words capitalised, where all its letters are of one case; else as it is. Its length stays."""
    if text != text.lower() and text != text.upper():
        return text
    title = _WORD.sub(_capitalised, text)
    return title if len(title) == len(text) else text


def _capitalised(match: re.Match[str]) -> str:
    word = match[0].lower()
    return word if word in _SMALL_WORDS else word.capitalize()


def load(model: str, batch_size: int = 256) -> Recognizer:
    """The recognizer of a spaCy pipeline given by folder or installed name; "blank" finds nothing.

    A process loads the same files once. Raises RecognizerError, saying what to do, where there is no such model or it
    has no `ner`.
    """
    if model == BLANK:
        return Recognizer(None, BLANK, batch_size)
    folder = model_folder(model)
    content = fingerprint(model)
    return Recognizer(_pipeline(str(folder), content), content, batch_size)


class RecognizerError(I2EError, ValueError):
    """A recognizer that is not there or cannot find names; the message says the remedy."""


def check(model: str) -> None:
    """Raise RecognizerError where the recognizer is not there, cannot be loaded or cannot find names."""
    try:
        load(model).find(["Mercury over London"])
    except RecognizerError:
        raise
    except Exception as error:  # whatever a component of somebody's raises
        raise RecognizerError(f"extract.recognizer: {model} finds no names: {_said(error)}: {_REMEDY}") from error


_OTHERWISE = f'give the folder of one, or take "{BLANK}"'
_REMEDY = f"name a pipeline that `python -m spacy download` brings, {_OTHERWISE}"


def _said(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"


@lru_cache(maxsize=4)
def _pipeline(folder: str, content: str) -> Any:
    # Spark runs a worker per core: a model with threads of its own would compete with the other workers.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    import spacy

    try:
        config = spacy.util.load_config(Path(folder) / "config.cfg")
        pipeline: list[str] = config["nlp"]["pipeline"]
        if "ner" not in pipeline:
            raise RecognizerError(
                f"extract.recognizer: the spaCy pipeline in {folder} has no `ner`, only "
                f"{', '.join(pipeline) or 'nothing'}: {_REMEDY}"
            )
        kept = {"ner", *_listened_to(config)} & set(pipeline)
        return spacy.load(folder, exclude=[name for name in pipeline if name not in kept])
    except RecognizerError:
        raise
    except Exception as error:  # another version's pipeline, a component that is not installed, a file that is cut
        raise RecognizerError(
            f"extract.recognizer: {folder} cannot be loaded by spaCy {spacy.__version__}: {_said(error)}: {_REMEDY}"
        ) from error


def _listened_to(config: Any) -> set[str]:
    """Components whose output `ner` uses: those of the kind that its listener names."""
    listener = config["components"]["ner"].get("model", {}).get("tok2vec", {})
    if "Listener" not in str(listener.get("@architectures", "")):
        return set()
    upstream = listener.get("upstream", "*")
    if upstream != "*":
        return {upstream}
    makers = ("tok2vec", "transformer", "curated_transformer")
    return {name for name in config["nlp"]["pipeline"] if config["components"][name].get("factory") in makers}


def model_folder(model: str) -> Path:
    """The folder of the pipeline of that folder or installed package. Raises RecognizerError."""
    if not model.strip():
        raise RecognizerError(f"extract.recognizer is empty: {_REMEDY}")
    inside = Path(model) if Path(model).is_dir() else _package(model)
    if inside is None:
        remedy = f"`python -m spacy download {model}`, {_OTHERWISE}" if model.isidentifier() else _REMEDY
        raise RecognizerError(
            f"extract.recognizer: {model} is neither a folder nor an installed spaCy pipeline: {remedy}"
        )
    if (inside / "config.cfg").is_file():
        return inside
    nested = sorted(path for path in inside.glob("*/config.cfg") if path.is_file())
    if not nested:
        what = "a folder" if inside == Path(model) else f"a package of Python ({inside})"
        raise RecognizerError(
            f"extract.recognizer: {model} is {what} that holds no spaCy pipeline (no config.cfg): {_REMEDY}"
        )
    return nested[-1].parent


def _package(name: str) -> Path | None:
    """The folder of an installed package; None for one that is not there. A module of one file has none of its own."""
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # `__main__`
        return None
    return Path(spec.origin).parent if spec and spec.origin and spec.submodule_search_locations else None


def fingerprint(model: str) -> str:
    """32 hex characters for the content of a model's files, wherever they lie; "blank" for none."""
    if model == BLANK:
        return BLANK
    folder = model_folder(model)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    stamps = tuple((str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return _fingerprint(folder, stamps)


@lru_cache(maxsize=16)
def _fingerprint(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    # Every task asks, and a large model takes a second to read: read again only what was touched.
    digest = hashlib.blake2b(digest_size=16)
    for name, _, _ in stamps:
        content = hashlib.blake2b((folder / name).read_bytes(), digest_size=16).digest()
        digest.update(Path(name).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()
