"""A small world of questions whose answers follow a rule, and small models of Hugging Face's form to learn it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from i2e_pipeline.rerank.questions import EXAMPLES

WORDS = (
    *("north", "south", "east", "west", "river", "lake", "hill", "town", "castle", "bridge", "old", "new", "grey"),
    *("red", "a", "the", "of", "in", "near", "seen", "painted", "photo", "view", "morning", "evening"),
)


def encoder(folder: Path, layers: int = 2, width: int = 64) -> str:
    """A BERT with random weights, whose tokens are WORDS, letters and numbers; returns its folder."""
    letters = [chr(c) for c in range(97, 123)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", ",", "(", ")", "?", *map(str, range(40)), *WORDS]
    tokens += [*letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {token: n for n, token in enumerate(dict.fromkeys(tokens))}
    wordpiece = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    named = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=wordpiece, **named)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
    }
    model = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=128, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def planted(count: int, seed: int = 0) -> pa.Table:
    """EXAMPLES: a text says in which direction a place lies, and the candidate of that direction is meant, though the
    fast path finds another one as likely; in one of eight no candidate is of that direction."""
    draw = np.random.default_rng(seed)
    directions = WORDS[:4]
    rows = []
    for n in range(count):
        direction, kind = draw.choice(directions), draw.choice(WORDS[4:10])
        begin = f"{draw.choice(WORDS[18:])} {draw.choice(WORDS[10:14])} "
        text = f"{begin}{kind} in the {direction} {draw.choice(WORDS[18:])} {draw.integers(40)}"
        others = [d for d in draw.permutation(directions) if d != direction][: int(draw.integers(1, 4))]
        told = others if n % 8 == 0 else [*others[:-1], direction]
        told = [told[i] for i in draw.permutation(len(told))] + ([others[-1]] if len(told) < 2 else [])
        candidates = [
            {
                "entity_id": 1 + directions.index(d) + 10 * place * (d != direction),
                "name": kind,
                "description": f"{kind} of the {d}",
                "coarse_type": None,
                "probability": 0.9 / len(told),
            }
            for place, d in enumerate(told)
        ]
        answer = 1 + directions.index(direction) if direction in told else None
        rows.append(
            {
                "text": text,
                "start": len(begin),
                "end": len(begin) + len(kind),
                "candidates": candidates,
                "chosen": answer,
            }
        )
    return pa.Table.from_pylist(rows, EXAMPLES)
