"""The mini GPR1200 of the sample world."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from i2e_pipeline.evaluate.datasets import open_dataset
from i2e_pipeline.sample import gpr
from i2e_pipeline.sample.world import HELD_OUT_STYLE


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "gpr"
    assert gpr.compose_gpr(folder, per_domain=2, images=3, processes=1)
    return folder


def test_it_is_a_data_set_of_six_domains(small: Path) -> None:
    data = open_dataset("mini", str(small))
    assert len(data) == 6 * 2 * 3
    assert data.domains_N is not None
    assert list(dict.fromkeys(data.domains_N.tolist())) == list(gpr.DOMAINS)
    assert data.labels_N.tolist() == [category for category in range(12) for _ in range(3)]
    assert data.descriptions is not None
    assert all(data.class_names)


def test_the_same_arguments_give_the_same_bytes_whoever_draws(small: Path, tmp_path: Path) -> None:
    assert gpr.compose_gpr(tmp_path / "again", per_domain=2, images=3, processes=2)
    assert content(tmp_path / "again") == content(small)


def test_a_second_call_does_nothing_and_other_arguments_replace(tmp_path: Path) -> None:
    assert gpr.compose_gpr(tmp_path / "gpr", per_domain=1, images=1, processes=1)
    assert not gpr.compose_gpr(tmp_path / "gpr", per_domain=1, images=1, processes=1)
    assert gpr.compose_gpr(tmp_path / "gpr", per_domain=1, images=2, processes=1)
    assert len(list((tmp_path / "gpr" / "images").iterdir())) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["gpr"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is no composed benchmark"):
        gpr.compose_gpr(tmp_path, per_domain=1, images=1, processes=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_scenes_are_draws_of_no_other_split_and_show_the_held_out_style() -> None:
    chosen = gpr.categories()
    assert len({entity.id for _, entity in chosen}) == len(chosen)
    assert max(sum(d == domain for d, _ in chosen) for domain in gpr.DOMAINS) == gpr.PER_DOMAIN
    scenes = [gpr.scene(entity, number) for _, entity in chosen for number in range(gpr.IMAGES)]
    assert {scene.name.split("/")[1] for scene in scenes} == {"gpr"}
    assert len({scene.name for scene in scenes}) == len(scenes)
    assert 0.25 < sum(scene.style == HELD_OUT_STYLE for scene in scenes) / len(scenes) <= 0.4


def test_names_and_domains_cover_each_category(small: Path) -> None:
    about = json.loads((small / "domains.json").read_text())
    assert set(about["names"]) == set(about["domains"]) == {str(i) for i in range(12)}
