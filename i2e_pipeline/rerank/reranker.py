"""A reranker's folder, and the reranker that is loaded from it.

FOLDER/reranker.json     kind, how scores are weighed, what it was trained on with which figures
FOLDER/model/            the pretrained part with its tokenizer, as Hugging Face saves it
FOLDER/heads.safetensors what training added to that
FOLDER/seen/             where entities were seen, where the model was trained to be told so (seen.py)
FOLDER/curve.jsonl       figures on the held-out texts while it was trained
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from i2e_pipeline.core import files
from i2e_pipeline.core.config import content as content_of
from i2e_pipeline.core.errors import I2EError, first_line
from i2e_pipeline.rerank.fusing import Fusing
from i2e_pipeline.rerank.questions import CANDIDATE_TOKENS, Asked, laid_flat

if TYPE_CHECKING:
    from i2e_pipeline.rerank.scorer import Scorer
    from i2e_pipeline.rerank.seen import Seen
    from i2e_pipeline.rerank.vectors import CandidateVectors

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
FORMAT = 1
KINDS = ("cross", "bi", "fusion")
ABOUT, MODEL, HEADS, SEEN, CURVE = "reranker.json", "model", "heads.safetensors", "seen", "curve.jsonl"
IN_TRAINING = (CURVE, "training.pt")
"""What lies beside SEEN in the folder of a training."""
SCORES = 1
"""To be raised when the code makes other scores of the same folder."""


class NoReranker(I2EError, ValueError):
    """A folder that holds no reranker; the message says what to do."""


@dataclass(frozen=True)
class About:
    """What a folder says of its reranker."""

    kind: str
    fusing: Fusing
    candidate_tokens: int = CANDIDATE_TOKENS
    seen: bool = False
    """Whether the model is told where entities were seen."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    trained: Mapping[str, Any] = field(default_factory=dict)
    """Settings and names of the files of examples."""


def about(folder: str) -> About:
    """Raises NoReranker for what is none. Loads no model."""
    path = Path(folder) / ABOUT
    try:
        told = json.loads(path.read_text("utf-8"))
        if told["format"] != FORMAT or told["kind"] not in KINDS:
            raise ValueError(f"format {told['format']!r}, kind {told['kind']!r}")
        rest = {k: v for k, v in told.items() if k not in ("format", "kind", "fusing")}
        return About(told["kind"], Fusing(**told["fusing"]), **rest)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NoReranker(
            f"{folder} holds no reranker ({ABOUT}: {error}): name a folder that `i2e reranker train` wrote"
        ) from None


@dataclass
class Reranker:
    """A loaded model with what its scores are worth."""

    scorer: Scorer
    about: About
    seen: Seen | None = None
    device: str = "cpu"
    bfloat16: bool = False
    batch: int = 16

    def probabilities(
        self, questions: pa.RecordBatch | pa.Table, known: CandidateVectors | None = None
    ) -> tuple[F64, F64]:
        """(C) each candidate's probability and (C) its score in logits, in the questions' order.

        questions   QUESTIONS
        known       of a bi-encoder: vectors of entities, which then are not encoded again
        """
        from i2e_pipeline.rerank.scorer import scores_of

        asked = laid_flat(questions, self.seen)
        if self.about.kind == "bi":
            asked = replace(asked, vectors=self._vectors_of(asked, known))
        score, none = scores_of(self.scorer, asked, np.arange(len(asked)), self.device, self.bfloat16, self.batch)
        return self.about.fusing.probabilities(asked, score, none)[0], score

    def _vectors_of(self, asked: Asked, known: CandidateVectors | None) -> F32:
        """(C, W): from those that are known, and made of the others, each text once."""
        there = np.zeros(len(asked.entity), bool)
        if known is not None:
            there, of_known = known.lookup(asked.entity)
            if self.seen is not None:  # a text that is itself what is told of an entity is told another one
                there &= ~self.seen.itself(asked.entity, [asked.texts[n] for n in asked.mention])
        missing = np.flatnonzero(~there)
        distinct = {told: n for n, told in enumerate(sorted({asked.told[i] for i in missing}))}
        made = self.vectors(list(distinct))
        vectors = np.zeros((len(there), made.shape[1]), np.float32)
        if there.any():
            vectors[there] = of_known[there]
        if len(missing):
            vectors[missing] = made[[distinct[asked.told[i]] for i in missing]]
        return vectors

    def vectors(self, told: Sequence[str]) -> F32:
        """(N, W): a bi-encoder's unit vectors of what is told of candidates, in batches of one shape."""
        import torch

        from i2e_pipeline.rerank.bi_encoder import BiEncoder

        model = self.scorer
        assert isinstance(model, BiEncoder)
        found = [np.zeros((0, model.of_entity.out_features), np.float32)]
        kind = torch.device(self.device).type
        with torch.inference_mode(), torch.autocast(kind, dtype=torch.bfloat16, enabled=self.bfloat16):
            at_once = _TOLD * self.batch
            for start in range(0, len(told), at_once):
                some = list(told[start : start + at_once])
                filled = some + some[:1] * (at_once - len(some))
                ids, there = model.told(filled, model.candidate_tokens + 2)
                made = model.entities(ids.to(self.device), there.to(self.device))
                found.append(made[: len(some)].float().cpu().numpy())
        return np.concatenate(found)


_TOLD = 4
"""Candidates that a bi-encoder encodes at once, for each mention of a batch."""


def begin(kind: str, pretrained: str, candidate_tokens: int = CANDIDATE_TOKENS) -> Scorer:
    """A reranker to be trained, from a pretrained model.

    pretrained   name or folder of Hugging Face's form: an encoder (cross, bi), or an encoder–decoder (fusion); of an
                 encoder alone, fusion makes one whose decoder begins as a copy of it
    Raises NoReranker, naming the model, where it cannot be had or has another form.
    """
    from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, EncoderDecoderModel

    def loaded(make: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return make(*arguments, **options)
        except (OSError, ValueError, KeyError) as error:
            raise NoReranker(
                f"--model {pretrained}: no model for a {kind} reranker ({first_line(error)}): name a folder or a model "
                "of the hub"
            ) from None

    tokenizer = loaded(AutoTokenizer.from_pretrained, pretrained)
    if kind != "fusion":
        return _scorer(kind, loaded(AutoModel.from_pretrained, pretrained), tokenizer, candidate_tokens)
    from transformers import AutoConfig

    if loaded(AutoConfig.from_pretrained, pretrained).is_encoder_decoder:
        return _scorer(kind, loaded(AutoModelForSeq2SeqLM.from_pretrained, pretrained), tokenizer, candidate_tokens)
    model = loaded(EncoderDecoderModel.from_encoder_decoder_pretrained, pretrained, pretrained)
    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    return _scorer(kind, model, tokenizer, candidate_tokens)


def _scorer(kind: str, model: Any, tokenizer: Any, candidate_tokens: int) -> Scorer:
    from i2e_pipeline.rerank.bi_encoder import BiEncoder
    from i2e_pipeline.rerank.cross_encoder import CrossEncoder
    from i2e_pipeline.rerank.fusion import Fusion

    kinds: Mapping[str, Callable[[Any, Any], Scorer]] = {"cross": CrossEncoder, "bi": BiEncoder, "fusion": Fusion}
    scorer = kinds[kind](model, tokenizer)
    scorer.candidate_tokens = candidate_tokens
    return scorer


def save(scorer: Scorer, folder: str, told: About, training: str | None = None) -> None:
    """Write a folder that `load` reads, in the place of an older one; until it is whole, that stays.

    training   folder of the training, which may hold SEEN and CURVE
    """
    from safetensors.torch import save_file

    with files.fresh_folder(folder) as place:
        pretrained = scorer.pretrained()
        pretrained.save_pretrained(place / MODEL)
        scorer.tokenizer.save_pretrained(place / MODEL)
        save_file(scorer.added(), place / HEADS)
        if told.seen:
            shutil.copytree(Path(str(training)) / SEEN, place / SEEN)
        if training is not None and (Path(training) / CURVE).exists():
            shutil.copy(Path(training) / CURVE, place / CURVE)
        about = json.dumps({"format": FORMAT, **asdict(told)}, indent=1)
        files.write_bytes(str(place / ABOUT), f"{about}\n".encode())


def load(folder: str, *, device: str = "cpu", bfloat16: bool = False, batch: int = 16) -> Reranker:
    """Raises NoReranker for a folder that holds none, or one that is damaged. Nothing in it is run: weights are
    safetensors, and a model's own code is not loaded."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer, EncoderDecoderModel

    from i2e_pipeline.rerank.seen import Seen

    told = about(folder)
    place = str(Path(folder) / MODEL)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        if told.kind != "fusion":
            model = AutoModel.from_pretrained(place, local_files_only=True, use_safetensors=True)
        else:
            two = json.loads((Path(place) / "config.json").read_text("utf-8"))["model_type"] == "encoder-decoder"
            form = EncoderDecoderModel if two else AutoModelForSeq2SeqLM
            model = form.from_pretrained(place, local_files_only=True, use_safetensors=True)
        scorer = _scorer(told.kind, model, tokenizer, told.candidate_tokens)
        lacking, unknown = scorer.load_state_dict(load_file(Path(folder) / HEADS), strict=False)
        added = set(scorer.added())
        if unknown or added & set(lacking):
            raise ValueError(f"{HEADS} lacks {sorted(added & set(lacking))}, and has besides {sorted(unknown)}")
        seen = Seen(Path(folder) / SEEN) if told.seen else None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise NoReranker(f"{folder}: its model cannot be loaded ({error}): train it again, or copy it whole") from None
    scorer.to(device).eval()
    return Reranker(scorer, told, seen, device, bfloat16, batch)


_loaded: dict[Any, Reranker] = {}
_loading = threading.Lock()


def load_once(folder: str, content: str, **options: Any) -> Reranker:
    """`load`, kept for the life of the worker process.

    content   what the run has found in the folder (core.config.content). Raises NoReranker where something else lies
              there by now: two rerankers' answers would stand in one table
    """
    key = (os.getpid(), content, *sorted(options.items()))
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            loaded = load(folder, **options)
            if content_of(folder) != content:
                raise NoReranker(f"{folder} holds another reranker than when the run began: start the run again")
            _loaded[key] = loaded
        return _loaded[key]
