"""What `i2e doctor` says of the sources of a knowledge base, before a run reads them for hours."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from i2e_pipeline.commands import doctor
from i2e_pipeline.core.config import load
from i2e_pipeline.core.errors import I2EError
from tests.wikidata.lines import line

WHOLE = b"[\n" + b",\n".join(line(n).removesuffix(b",") for n in range(1, 9)) + b"\n]\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("d.json", WHOLE, None),
        ("d.json", WHOLE[:-2], "knowledge_base.dump: .*d.json: the array that it opens does not close: .*download"),
        ("d.json", b"Not Found\n", "knowledge_base.dump: .*d.json is no JSON, it begins with 'Not Found'"),
        ("d.json.gz", b"<html>404", "is an HTML page"),
        ("d.json.bz2", bz2.compress(b"@prefix wd: <http://x> ."), "is RDF"),
        ("d.json.bz2/", b"", "d.json.bz2: a folder without a file that counts"),
        ("d.json.bz2/_hidden", WHOLE, "d.json.bz2: a folder without a file that counts"),
        ("d.json.bz2/part.json", WHOLE, None),
    ],
)
def test_doctor_looks_at_a_dump_as_a_run_does(tmp_path: Path, name: str, content: bytes, said: str | None) -> None:
    place = tmp_path / name
    place.parent.mkdir(exist_ok=True)
    if name.endswith("/"):
        place.mkdir()
    else:
        place.write_bytes(content)
    config = load(None, [f"knowledge_base.dump={tmp_path / name.split('/')[0]}"])
    (check,) = (check for called, check in doctor.checks(config) if called == "knowledge base")
    if said is None:
        assert check().startswith("dump 0.0 MB")
        return
    with pytest.raises(doctor.Failed, match=said):
        check()
    partial = load(None, [f"knowledge_base.dump={place}", "knowledge_base.allow_partial=true"])
    if "does not close" in said:
        (check,) = (check for called, check in doctor.checks(partial) if called == "knowledge base")
        assert check()


def test_a_finding_is_as_wide_as_the_terminal() -> None:
    said = "the JVM is Java 8, and Spark runs on 17 to 21: set JAVA_HOME to such a one, of the driver and of executors"
    finding = doctor.Finding("java", "FAILED", f"{said}\n{said}")
    lines = doctor.told(finding, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) >= 4
    assert " ".join(" ".join(lines).split()) == " ".join(str(finding).split())
    assert doctor.told(finding, None) == str(finding)


def test_doctor_refuses_an_output_that_is_a_file_and_a_model_without_weights(tmp_path: Path) -> None:
    """Catches: ok for what a run dies of, the model after hours."""
    (tmp_path / "file").write_text("x")
    checks = dict(doctor.checks(load(None, [f"output={tmp_path}/file", "score.model=ViT-B-32"])))
    with pytest.raises(I2EError, match=r"output: .*file is a file: name a folder"):
        checks["disk"]()
    with pytest.raises(doctor.Failed, match="write ViT-B-32@TAG; known are "):
        checks["score model"]()
