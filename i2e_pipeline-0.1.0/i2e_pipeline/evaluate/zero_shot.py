"""Zero-shot classification: an image is of the class whose prompts it is nearest to.

A class's vector is the mean of the unit vectors of its prompts (each template with the class's name in it), made
unit length again (CLIP, arXiv 2103.00020, section 3.1.4).

Legend: N images, C classes, T templates, D width, K nearest classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from i2e_pipeline.evaluate.class_prompts import prompts
from i2e_pipeline.evaluate.retrieval import mean_by_class, top_k
from i2e_pipeline.evaluate.vectors import VectorsError

PLAIN_TEMPLATES = ("a photo of a {c}.",)
"""For a data set without templates of its own."""


def templates_for(known: str | None) -> tuple[str, ...]:
    """The published templates of a known data set, the plain one of any other."""
    return tuple(prompts(known)["templates"]) if known else PLAIN_TEMPLATES


def class_vectors(
    texts: Callable[[list[str]], np.ndarray], names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """vectors_CD (float32, norm 1) of the classes; `{c}` in a template is the name.

    texts   encodes texts: vectors_ND, norm 1
    Raises VectorsError for a template without `{c}`: every class would have the same vector.
    """
    for template in templates:
        if "{c}" not in template:
            raise VectorsError(f"template {template!r} has no {{c}} for the name of the class")
    vectors_ND = texts([template.replace("{c}", name) for name in names for template in templates])
    mean_CD = vectors_ND.reshape(len(names), len(templates), -1).astype(np.float64).mean(axis=1)
    norms_C1 = np.linalg.norm(mean_CD, axis=1, keepdims=True)
    if not (norms_C1 > 1e-8).all():
        raise VectorsError(f"the prompts of {names[int(norms_C1.argmin())]!r} cancel out: their mean has no direction")
    return (mean_CD / norms_C1).astype(np.float32)


def zero_shot(
    texts: Callable[[list[str]], np.ndarray],
    vectors_ND: np.ndarray,
    labels_N: np.ndarray,
    class_names: Sequence[str],
    templates: Sequence[str] = PLAIN_TEMPLATES,
    block_mb: float = 256,
) -> dict[str, Any]:
    """`acc@1` and `acc@5` in [0, 1] (None with fewer than six classes), `correct` by figure and image.

    texts                  encodes texts: vectors_ND, norm 1
    vectors_ND, labels_N   of the images, norm 1; labels count along class_names
    `mean per class` is acc@1 in the mean over the classes that have images, as CLIP's authors measure some data sets.
    Classes that bear one name cannot be told apart; `double_names` lists them.
    """
    vectors_CD = class_vectors(texts, class_names, templates)
    _, nearest_NK = top_k(vectors_ND, vectors_CD, min(5, len(class_names)), block_mb)
    right_NK = nearest_NK == np.asarray(labels_N)[:, None]
    return {
        "acc@1": float(right_NK[:, 0].mean()),
        "acc@5": float(right_NK.any(axis=1).mean()) if len(class_names) > 5 else None,
        "mean per class": mean_by_class(right_NK[:, 0], np.asarray(labels_N)),
        "images": len(vectors_ND),
        "classes": len(class_names),
        "templates": len(templates),
        "double_names": sorted(name for name, count in Counter(class_names).items() if count > 1),
        "correct": {
            "acc@1": right_NK[:, 0].tolist(),
            **({"acc@5": right_NK.any(axis=1).tolist()} if len(class_names) > 5 else {}),
        },
    }
