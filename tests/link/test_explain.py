"""What speaks for a candidate adds up to its score, and the probabilities are the kernel's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from i2e_pipeline.core.config import LinkConfig
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.link.candidates import link_rows
from i2e_pipeline.link.disambiguate import FEATURES, Weights, disambiguate
from i2e_pipeline.link.explain import OVER_MAX, explain_links

TEXT = "bananas and Turkey"
ID = content_id(TEXT.encode())
MENTIONS = [
    {"text_id": ID, "start": start, "end": end, "surface": TEXT[start:end], "normal_form": form, "source": "gazetteer"}
    for start, end, form in ((12, 18, "turkey"), (0, 7, "bananas"), (8, 11, "and"))
]
KNOWN = {
    form: [{"entity_id": e, "prior": p, "kind": "label"} for e, p in of]
    for form, of in {
        "bananas": [(1, 0.9), (503, 0.1)],
        "banana": [(503, 0.8)],
        "turkey": [(43, 0.7), (848706, 0.2), (9, 0.0999), (8, 0.0001)],
    }.items()
}


@pytest.mark.parametrize(
    "settings",
    [LinkConfig(), LinkConfig(max_candidates=2), LinkConfig(min_probability=0.3), LinkConfig(nil_weight=0)],
)
def test_an_explanation_is_what_the_kernel_makes(settings: LinkConfig) -> None:
    """Catches: a rank, a floor or a weight that is told otherwise than it is applied."""
    rows = link_rows({ID: TEXT}, MENTIONS, KNOWN)
    ((first, second, third),) = explain_links(rows, None, settings, Weights())
    assert [m["start"] for m in (first, second, third)] == [0, 8, 12]
    assert second["rejected"] == "no_candidate"
    told = {
        (m["start"], c["entity_id"]): (np.float32(c["probability"]), c["rank"])
        for m in (first, second, third)
        for c in m["candidates"]
        if c["dropped"] is None
    }
    made = {
        (row["start"], row["entity_id"]): (np.float32(row["probability"]), row["rank"])
        for table, batch in disambiguate([rows], None, settings)
        for row in (batch.to_pylist() if table == "candidates" else ())
    }
    assert told == made
    for m in (first, third):
        assert sum(c["probability"] for c in m["candidates"]) + m["none"]["probability"] == pytest.approx(1)
        assert [c["rank"] for c in m["candidates"]] == [*range(1, len(m["candidates"]) + 1)]
        for c in m["candidates"]:
            assert tuple(c["features"]) == FEATURES
            assert sum(f["contribution"] for f in c["features"].values()) == pytest.approx(c["score"])
            if m["none"]["score"] is not None:
                odds = math.log(c["probability"] / m["none"]["probability"])
                assert c["score"] - m["none"]["score"] == pytest.approx(odds)


def test_what_is_dropped_has_its_reason() -> None:
    rows = link_rows({ID: TEXT}, MENTIONS, KNOWN)
    ((_, _, turkey),) = explain_links(rows, None, LinkConfig(max_candidates=2, min_probability=0.01), Weights())
    assert [c["dropped"] for c in turkey["candidates"]] == [None, None, OVER_MAX, "below_floor"]
    assert turkey["rejected"] is None
    ((_, _, turkey),) = explain_links(rows, None, LinkConfig(min_probability=0.99), Weights())
    assert turkey["rejected"] == "below_floor"


def test_an_entity_under_form_and_singular_is_told_once() -> None:
    rows = link_rows({ID: TEXT}, MENTIONS, KNOWN)
    ((bananas, *_),) = explain_links(rows, None, LinkConfig(), Weights())
    assert [(c["entity_id"], c["inflected"]) for c in bananas["candidates"]] == [(1, False), (503, False)]
