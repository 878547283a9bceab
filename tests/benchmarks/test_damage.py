"""benchmarks/damage.py damages an output, says what was found, and whether what was mended is equal."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from benchmarks import damage
from i2e_pipeline.core.config import Config


@pytest.mark.long
@pytest.mark.slow
def test_damage(reported: Config, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    arguments = ["--output", reported.output, "--draws", "12", "--repairs", "0", "--json", str(told)]
    assert damage.main(arguments) == 0
    figures = json.loads(told.read_text(encoding="utf-8"))
    assert figures["found_and_named"] == figures["draws"] == 12
    (one,) = figures["outputs"]
    assert sum(count for _, count in one["by_kind"].values()) == 12


def test_a_file_is_never_what_it_was(tmp_path: Path) -> None:
    """Catches: zeros over zeros, counted as a damage that nobody found."""
    paths = [tmp_path / name for name in "abc"]
    kinds = set()
    for seed in range(300):
        for path, content in zip(paths, (b"", bytes(5000), random.Random(1).randbytes(3000)), strict=True):
            path.write_bytes(content)
        path = paths[seed % 3]
        before = path.read_bytes()
        kinds.add(damage.damage(path, paths, random.Random(seed)))
        assert not path.exists() or path.read_bytes() != before
    assert kinds == set(damage.KINDS)


def test_a_fault_names_a_file_by_its_path_or_its_stage_and_unit() -> None:
    """Catches: a fault of `i2e` or `units` that counts as one of every file whose path holds these letters."""
    unit = "u-0123456789ab"
    file, owner = f"labels/unit={unit}/part-1.parquet", ("label", unit)
    assert damage.names({"path": file}, file, owner)
    assert damage.names({"path": "_commits/label", "stage": "label", "unit": unit}, file, owner)
    for fault in ({"path": "labels"}, {"path": f"labels/unit={unit}"}, {"path": "x", "stage": "label"}):
        assert not damage.names(fault, file, owner)
    assert not damage.names({"path": "units", "stage": "", "unit": ""}, f"units/{unit}.json", ("", unit))


@pytest.mark.long
@pytest.mark.slow
def test_a_matrix_has_every_kind_of_file_with_every_kind_of_damage(reported: Config) -> None:
    output = Path(reported.output)
    cells = damage.matrix(output, None, 0)
    kinds = {damage.kind_of(p.relative_to(output).as_posix()) for p in damage.lying(output)}
    assert {"labels/unit=*/*", "units/*.json", "_commits/label/*.json", "_seal", "i2e/manifest.json"} <= kinds
    assert len(kinds) < len(damage.lying(output))
    for wanted in damage.KINDS:
        assert {damage.kind_of(c.below) for c in cells if c.kind == wanted} == kinds
    added = {damage.kind_of(c.below) for c in cells if c.kind == damage.ADDED}
    assert {"i2e/images/unit=*/*", "units/*.json", "_commits/label/*.json", "i2e/manifest.json"} <= added
    assert not {"_seal", "config.yaml", "report.html", "labels/unit=*/*"} & added


@pytest.mark.long
@pytest.mark.slow
def test_outputs_are_unlike_by_any_file(reported: Config, tmp_path: Path) -> None:
    """Catches: an output that counts as mended because the rows of its tables are equal."""
    output = tmp_path / "out"
    shutil.copytree(reported.output, output)
    wanted = damage.contents(output)
    assert wanted == damage.contents(Path(reported.output))
    lying = damage.lying(output)
    told = [p for p in lying if damage.kind_of(p.relative_to(output).as_posix()) not in ("_seal",)]
    for n, path in enumerate(told):
        before = path.read_bytes()
        if path.suffix == ".parquet" or "_commits" in path.parts:  # rows and records are read: the file has to be one
            continue
        damage.damage(path, lying, random.Random(n), "a_block" if before else None)
        assert damage.contents(output) != wanted, path
        path.write_bytes(before)
    stray = next(p for p in told if p.name.startswith("part-"))
    shutil.copyfile(stray, damage.beside(stray, random.Random(1)))
    assert damage.contents(output) != wanted


@pytest.mark.parametrize(("found", "equal", "code"), [(99, True, 0), (98, True, 1), (100, False, 1)])
def test_what_is_not_found_or_mended_fails(monkeypatch: pytest.MonkeyPatch, found: int, equal: bool, code: int) -> None:
    told = {
        "draws": 100,
        "found_and_named": found,
        "groups": 1,
        "damaged_in_groups": 5,
        "groups_mended_to_equal": equal,
    }
    monkeypatch.setattr(damage, "measured", lambda *_: told)
    assert damage.main([]) == code
