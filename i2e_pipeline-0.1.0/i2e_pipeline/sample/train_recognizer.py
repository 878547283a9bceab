"""Train the sample's mention recogniser:  python -m i2e_pipeline.sample.train_recognizer

A spaCy pipeline with one component, `ner` (its own HashEmbedCNN, no vectors), on captions of other draws than the
scored ones. Labels say what kind of thing a name means; the linker only needs the span.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spacy
from spacy import util
from spacy.language import Language
from spacy.training import Example

from i2e_pipeline.sample.captions import Caption
from i2e_pipeline.sample.draws import draw
from i2e_pipeline.sample.world import HERE, load_world

MODEL = HERE / "models" / "recognizer"
LABELS = {
    "LOC": "LOC",
    "ANIMAL": "LIVING",
    "PLANT": "LIVING",
    "FOOD": "FOOD",
    "SPORT": "SPORT",
    "SPACE": "SPACE",
    "THING": "THING",
}
TOK2VEC: dict[str, Any] = {
    "@architectures": "spacy.HashEmbedCNN.v2", "pretrained_vectors": None, "width": 64, "depth": 3, "embed_size": 2000,
    "window_size": 1, "maxout_pieces": 2, "subword_features": True,
}  # fmt: skip
NER: dict[str, Any] = {
    "@architectures": "spacy.TransitionBasedParser.v2", "state_type": "ner", "extra_state_tokens": False,
    "hidden_width": 48, "maxout_pieces": 2, "use_upper": True, "tok2vec": TOK2VEC,
}  # fmt: skip


def captions(split: str, count: int, seed: int = 11) -> Iterator[Caption]:
    """Captions of a split's draws."""
    for number in range(count):
        yield draw(seed, split, number).caption


def spans(caption: Caption) -> list[tuple[int, int, str]]:
    """(start, end, label) of the planted names that stand in the text, in upper or lower case."""
    world, found = load_world(), []
    text = caption.text.lower()
    for surface, qid in caption.spans:
        start = text.find(surface.lower())
        if start >= 0:
            found.append((start, start + len(surface), LABELS[world.by_id[qid].kind]))
    return found


def example(nlp: Language, caption: Caption) -> Example:
    """A spaCy training example. A name that is only part of a token, as in a file name, is widened to whole tokens."""
    doc = nlp.make_doc(caption.text)
    ents = [doc.char_span(a, b, label=label, alignment_mode="expand") for a, b, label in spans(caption)]
    gold = doc.copy()
    gold.ents = util.filter_spans([e for e in ents if e is not None])
    return Example(doc, gold)


def train(count: int, epochs: int, seed: int) -> Language:
    """A pipeline trained on `count` captions, `epochs` times."""
    util.fix_random_seed(seed)
    nlp = spacy.blank("en")
    ner: Any = nlp.add_pipe("ner", config={"model": NER})
    for label in sorted(set(LABELS.values())):
        ner.add_label(label)
    examples = [example(nlp, c) for c in captions("training", count)]
    optimizer = nlp.initialize(lambda: examples[:500])
    rng = random.Random(seed)
    for epoch in range(epochs):
        rng.shuffle(examples)
        losses: dict[str, float] = {}
        optimizer.learn_rate = 0.002 * (1 - epoch / epochs) + 0.0001
        for batch in util.minibatch(examples, size=64):
            nlp.update(list(batch), sgd=optimizer, drop=0.2, losses=losses)
        print(f"epoch {epoch + 1}/{epochs} loss {losses['ner']:.0f}", flush=True)
    return nlp


def evaluate(nlp: Language, count: int) -> str:
    """Exact spans, any label, on captions of held-out draws."""
    right = found = wanted = 0
    for caption in captions("heldout", count):
        gold = {(e.start, e.end) for e in example(nlp, caption).reference.ents}
        here = {(e.start, e.end) for e in nlp(caption.text).ents}
        right, found, wanted = right + len(gold & here), found + len(here), wanted + len(gold)
    p, r = right / max(1, found), right / max(1, wanted)
    f1 = 2 * p * r / max(1e-9, p + r)
    return f"exact spans on {count} held-out captions: precision {p:.3f} recall {r:.3f} F1 {f1:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and judge the sample's mention recogniser.")
    parser.add_argument("--output", type=Path, default=MODEL)
    parser.add_argument("--captions", type=int, default=12000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    nlp = train(a.captions, a.epochs, a.seed)
    nlp.meta.update(
        {"name": "i2e_sample_recognizer", "license": "CC0-1.0", "description": "Names in alt-text of the sample world."}
    )
    shutil.rmtree(a.output, ignore_errors=True)
    a.output.parent.mkdir(parents=True, exist_ok=True)
    nlp.to_disk(a.output)
    print(f"{sum(f.stat().st_size for f in a.output.rglob('*') if f.is_file()):,} bytes in {a.output}")
    print(evaluate(spacy.load(a.output), 2000))


if __name__ == "__main__":
    main()
