"""What is told of settings, tables and reasons is what is declared."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from i2e_pipeline import cli, stages
from i2e_pipeline.commands import reference
from i2e_pipeline.core.config import Config, ConfigError
from i2e_pipeline.core.schemas import Reason
from wikidata.reasons import Reason as LineReason

ROOT = Path(__file__).parent.parent.parent


def test_every_setting_is_explained() -> None:
    """Catches: a setting whose unit and consequence nobody wrote down."""
    found = list(reference.settings(Config))
    assert len(found) > 120
    assert [f.path for f in found if isinstance(f, reference.Setting) and not f.about] == []
    assert [path for path, about in (f for f in found if isinstance(f, tuple)) if not about] == []


def test_every_stage_says_what_it_does_and_why_it_rejects() -> None:
    built_in = stages.every()
    assert all(s.does and s.rows_are and s.job for s in built_in)
    assert all(t.holds and (t.key or name == "kb/names") for s in built_in for name, t in s.tables.items())
    # Two stages that open images reject them alike, for the same reason; nothing else is said twice.
    said = {(str(reason), why) for s in built_in for reason, why in s.reasons.items()}
    assert all(len(why) > 10 and why.endswith((".", "”.")) for _, why in said)
    assert len(said) == len({why for _, why in said})
    assert {str(reason) for s in built_in for reason in s.reasons} == {str(r) for r in (*Reason, *LineReason)}


def test_the_pages_are_as_the_code_says() -> None:
    """`python docs/generate.py` writes them."""
    pages = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    assert {p.name for p in pages} == {"configuration.md", "data-formats.md", "reliability.md"}
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python docs/generate.py"


def test_a_setting_of_a_section_within_a_section_is_its_stages() -> None:
    """Catches: a weight of the priors that is said to cost nothing."""
    page = reference.configuration_page(Config, stages.built_in()).splitlines()
    (row,) = (line for line in page if line.startswith("| `knowledge_base.priors.image` |"))
    assert row.endswith("| knowledge_base, surfaces |")


def test_settings_are_printed_and_explained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("output: somewhere\nbuild: {bar: 0.7}\n")

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["config", "--config", str(tmp_path / "c.yaml"), *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    assert "  threshold: 0.7\n" in said()
    assert "label.threshold = null   (number | null, ≥ 0, ≤ 1)" in said("--explain", "label")
    assert "score.model" not in said("--explain", "label")
    assert "score.model" in said("--explain")
    with pytest.raises(ConfigError, match="no section 'labels'; sections are storage, session"):
        reference.explain(Config, "labels")
