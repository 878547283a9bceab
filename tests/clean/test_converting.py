"""Heads of others: what their layers give is what the head gives, and what is no head is refused by name."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from i2e_pipeline import cli
from i2e_pipeline.clean import heads
from i2e_pipeline.clean.converting import converted
from i2e_pipeline.clean.heads import About, HeadError
from i2e_pipeline.core.config import PolicyHead, ScoreConfig
from tests.small_models import write_model

SCORE = About("beauty", "clip", "ab", 0, 5.0, drops="below", output="number", activation="none", scale=(1, 10))
RELU = About("beauty", "clip", "ab", 0, 5.0, drops="below", output="number", activation="relu")
WIDTH = 24


class Predictor(nn.Module):
    """Layers named as in LAION's improved aesthetic predictor: layers.0, .2, .4, .6 and .7, dropout between."""

    def __init__(self, relu: bool = False) -> None:
        super().__init__()
        sizes = (WIDTH, 16, 8, 4, 2, 1)
        linear = [nn.Linear(one, two) for one, two in pairwise(sizes)]
        between: list[list[nn.Module]] = [[nn.Dropout(0.2)], [nn.Dropout(0.2)], [nn.Dropout(0.1)], [], []]
        if relu:
            between = [[nn.ReLU(), *some] for some in between[:-1]] + [[]]
        self.layers = nn.Sequential(*(m for layer, some in zip(linear, between, strict=True) for m in (layer, *some)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.layers(x)
        return given


def vectors() -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(50, WIDTH))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def given(model: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model.eval()(torch.from_numpy(vectors().astype(np.float32)))[:, 0].numpy())


@pytest.mark.parametrize("form", ["pth", "safetensors", "checkpoint"])
def test_layers_with_dropout_between_are_one_map_and_give_the_same_numbers(form: str, tmp_path: Path) -> None:
    model = Predictor()
    assert list(model.state_dict())[::2] == [f"layers.{n}.weight" for n in (0, 2, 4, 6, 7)]
    path = str(tmp_path / ("p.safetensors" if form == "safetensors" else "p.pth"))
    if form == "safetensors":
        save_file(model.state_dict(), path)
    else:
        state = model.state_dict()
        torch.save({"epoch": 3, "state_dict": state} if form == "checkpoint" else state, path)
    head = converted(path, SCORE)
    assert [weight.shape for weight, _ in head.layers] == [(1, WIDTH)]
    assert head.about.width == WIDTH
    np.testing.assert_allclose(head(vectors()), given(model), atol=2e-5)
    heads.write(f"{tmp_path}/head", head)
    back = heads.read(f"{tmp_path}/head")
    np.testing.assert_array_equal(back(vectors()), head(vectors()))
    assert (back.about.output, back.scale) == ("number", (1, 10))


def test_activations_stay_where_they_are(tmp_path: Path) -> None:
    model = Predictor(relu=True)
    torch.save(model.state_dict(), tmp_path / "p.pth")
    head = converted(str(tmp_path / "p.pth"), RELU)
    assert len(head.layers) == 5
    np.testing.assert_allclose(head(vectors()), given(model), atol=2e-5)
    torch.save(Predictor().state_dict(), tmp_path / "p.pth")
    with pytest.raises(HeadError, match=r"p\.pth: nothing stands between layers\.6 and layers\.7, so activation=none"):
        converted(str(tmp_path / "p.pth"), RELU)


def test_one_linear_layer_with_or_without_a_bias_and_more_than_ten(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models: list[nn.Module] = [nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1, bias=False)]
    models.append(nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(11)), nn.Linear(WIDTH, 1)))
    for model in models:
        torch.save(model.state_dict(), tmp_path / "p.pth")
        np.testing.assert_allclose(converted(str(tmp_path / "p.pth"), SCORE)(vectors()), given(model), atol=2e-5)


class Runs:
    """What would run code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_what_is_no_head_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states: list[tuple[Any, str]] = [
        ({"layers.0.weight": torch.ones(2, 3), "layers.0.bias": torch.ones(2)}, "2 outputs"),
        ({"a.0.weight": torch.ones(2, 3), "a.1.weight": torch.ones(1, 4)}, "does not fit"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)).state_dict(), r"0\.weight \(1, 1, 1, 1\) is of no Linear layer"),
        (nn.BatchNorm1d(3).state_dict(), "is of no Linear layer"),
        ({"a.bias": torch.ones(1)}, "a has no weight"),
        ({"a.weight": torch.full((1, 3), torch.nan)}, "not finite"),
        ({"weight": 3}, "no state dict: names with tensors"),
        ([torch.ones(1)], "no state dict: names with tensors"),
        ({"weight": Runs()}, "more than tensors in it"),
    ]
    path = tmp_path / "odd.pth"
    for state, why in states:
        torch.save(state, path)
        with pytest.raises(HeadError, match=rf"odd\.pth: .*{why}.*: a state dict of Linear layers"):
            converted(str(path), SCORE)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HeadError, match="no state dict of torch"):
        converted(str(path), SCORE)
    (tmp_path / "odd.safetensors").write_bytes(b"abc")
    with pytest.raises(HeadError, match="no file of safetensors"):
        converted(str(tmp_path / "odd.safetensors"), SCORE)
    assert capsys.readouterr().out == ""


def test_the_command_writes_what_a_config_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "vit", "vit")
    width = json.loads((tmp_path / "vit" / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"]
    asked = ["--from", f"{tmp_path}/p.pth", "--model", model, "--finds", "beauty, 1 to 10", "--threshold", "4.5"]
    asked += ["--drops", "below", "--output", "number", "--scale", "1", "10", "--activation", "none"]
    asked += ["--write", f"{tmp_path}/heads/beauty.safetensors"]

    def convert(*further: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            cli.main(["head", "convert", *asked, *further])
        return ended.value.code

    torch.save(nn.Linear(width, 1).state_dict(), tmp_path / "p.pth")
    assert not convert()
    assert json.loads(capsys.readouterr().out)["layers"] == [[1, width]]
    named = PolicyHead(reason="low_aesthetic", head=f"{tmp_path}/heads/beauty.safetensors", model=model)
    judge = heads.judge(named, 0, ScoreConfig())
    assert (judge.threshold, judge.drops) == (4.5, "below")
    assert heads.read(named.head).about.measured == {"converted_from": "p.pth"}
    assert convert("--threshold", "0.5") == HeadError.exit_code
    assert "its numbers lie between 1 and 10" in capsys.readouterr().err
    assert convert("--output", "probability") == HeadError.exit_code
    torch.save(nn.Linear(width + 1, 1).state_dict(), tmp_path / "p.pth")
    assert convert() == HeadError.exit_code
    assert f"reads vectors {width + 1} wide, and vit gives {width}" in capsys.readouterr().err
