from __future__ import annotations

import json

from i2e_pipeline.sample import embedded


def test_no_placeholder_is_left_in_the_sample_s_settings() -> None:
    """Catches: `{output}` in a list of paths, which no file matches."""
    for overrides in ([], ["output=/x/y", "knowledge_base.languages=no", "pairs.path=[{output}/a, {package}/b]"]):
        said = json.dumps(embedded.tree(overrides))
        assert "{output}" not in said
        assert "{package}" not in said
