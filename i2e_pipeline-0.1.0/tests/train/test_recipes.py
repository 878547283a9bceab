from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from i2e_pipeline.core.config import RECIPES, TrainConfig
from i2e_pipeline.train import losses
from i2e_pipeline.train.batch import Batch, Encoded
from i2e_pipeline.train.entity_head import EntityHead
from i2e_pipeline.train.parallel import World
from i2e_pipeline.train.recipes import RecipeError, recipe

WORLD = World()


def config_of(name: str, **sections: Any) -> TrainConfig:
    return TrainConfig.model_validate({"recipe": name, **sections})


def batch_of(images: int = 6) -> tuple[Encoded, Batch]:
    """A batch whose first two images are of the same entity."""
    draws = torch.Generator().manual_seed(3)
    class_B = torch.arange(images)
    class_B[1] = 0
    image_BD, text_BD, teacher_BT = (normalize(torch.randn(images, 8, generator=draws)) for _ in range(3))
    encoded = Encoded(image_BD.requires_grad_(), text_BD, torch.tensor(2.0), torch.tensor(-5.0), image_BD)
    pixels_BCHW = torch.zeros(images, 3, 2, 2, dtype=torch.uint8)
    batch = Batch(pixels_BCHW, class_B, class_B[:, None], torch.zeros(images, 4), teacher_BT, (b"",) * images)
    return encoded, batch


def head_of(config: TrainConfig) -> EntityHead:
    return EntityHead(9, 8, config.head, WORLD, seed=0)


def losses_of(config: TrainConfig, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
    chosen = recipe(config)
    return chosen.losses(encoded, batch, head_of(config) if chosen.uses_classes else None, WORLD, step=0)


def test_every_recipe_of_the_config_has_losses_that_differentiate() -> None:
    for name in RECIPES:
        encoded, batch = batch_of()
        chosen = recipe(config_of(name))
        assert chosen.name == name
        if not chosen.uses_text:
            encoded = replace(encoded, text_BD=None)
        found = losses_of(config_of(name), encoded, batch)
        assert ("classification" in found) == chosen.uses_classes
        assert ("contrastive" in found) == chosen.uses_text
        assert [part for part, loss in found.items() if loss.requires_grad] == ["loss"]
        found["loss"].backward()
        assert encoded.image_BD.grad is not None
        assert encoded.image_BD.grad.abs().sum() > 0


def test_multi_task_weighs_both_losses_by_lambda() -> None:
    encoded, batch = batch_of()
    config = config_of("multi_task", loss={"classification": 0.3})
    found = losses_of(config, encoded, batch)
    alone = {name: losses_of(config_of(name), encoded, batch)["loss"] for name in ("supervised", "contrastive")}
    assert found["classification"].item() == pytest.approx(alone["supervised"].item())
    assert found["contrastive"].item() == pytest.approx(alone["contrastive"].item())
    assert found["loss"].item() == pytest.approx(0.3 * alone["supervised"].item() + 0.7 * alone["contrastive"].item())


def test_equal_entities_are_negatives_only_where_asked() -> None:
    encoded, batch = batch_of()
    pair = (encoded.image_BD, encoded.text_BD, encoded.scale)
    plain, masked = losses.info_nce(*pair).item(), losses.info_nce(*pair, batch.classes_BK).item()
    assert plain > masked + 0.01

    def of(name: str, negatives: bool) -> float:
        config = config_of(name, loss={"equal_entities_are_negatives": negatives})
        return losses_of(config, encoded, batch)["contrastive"].item()

    for name in ("contrastive", "multi_task", "clip_entity_text"):
        assert of(name, negatives=False) == pytest.approx(masked)
        assert of(name, negatives=True) == pytest.approx(plain)


def test_the_alt_text_control_never_looks_at_labels() -> None:
    """Catches: a control that knows which images are of one entity, and so measures less than the labels are worth."""
    encoded, batch = batch_of()
    blind = replace(batch, classes_BK=torch.full_like(batch.classes_BK, -1))
    config = config_of("clip_alt_text")
    assert losses_of(config, encoded, batch)["loss"] == losses_of(config, encoded, blind)["loss"]


def test_siglip_is_an_option_of_the_contrastive_part() -> None:
    encoded, batch = batch_of()
    found = losses_of(config_of("contrastive", loss={"contrastive": "siglip"}), encoded, batch)
    expected = losses.siglip(encoded.image_BD, encoded.text_BD, encoded.scale, encoded.bias, batch.classes_BK)
    assert found["loss"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", RECIPES)
def test_any_recipe_distils_besides(name: str) -> None:
    encoded, batch = batch_of()
    without, distilling = config_of(name), config_of(name, loss={"distillation": 2.0})
    assert not recipe(without).uses_teacher
    assert recipe(distilling).uses_teacher
    distance = losses.distillation(encoded.distilled_BT, batch.teacher_BT).item()
    found = losses_of(distilling, encoded, batch)
    assert found["distillation"].item() == pytest.approx(distance)
    assert found["loss"].item() == pytest.approx(losses_of(without, encoded, batch)["loss"].item() + 2 * distance)


def test_texts_are_drawn_as_the_recipe_says() -> None:
    text = {"alt_text": 3, "name": 1, "name_and_description": 0}
    of = {name: recipe(config_of(name, text=text)).text_probabilities() for name in RECIPES}
    assert of == {
        "multi_task": (0.75, 0.25, 0),
        "supervised": (0, 0, 0),
        "contrastive": (0.75, 0.25, 0),
        "clip_alt_text": (1, 0, 0),
        "clip_entity_text": (0, 1, 0),
    }


def test_settings_that_make_no_sense_together_are_refused() -> None:
    nothing = {"alt_text": 0, "name": 0, "name_and_description": 0}
    for name in ("multi_task", "contrastive"):
        with pytest.raises(RecipeError, match=rf"train\.recipe={name} contrasts .* all of train\.text's shares are 0"):
            recipe(config_of(name, text=nothing))
    with pytest.raises(RecipeError, match="name and name_and_description are 0"):
        recipe(config_of("clip_entity_text", text={**nothing, "alt_text": 1}))
    with pytest.raises(RecipeError, match=r"loss\.classification=1 leaves .* set train\.recipe=supervised"):
        recipe(config_of("multi_task", loss={"classification": 1}))
    with pytest.raises(RecipeError, match=r"loss\.classification=0 leaves .* set train\.recipe=contrastive"):
        recipe(config_of("multi_task", loss={"classification": 0}))
    recipe(config_of("supervised", text=nothing))
    recipe(config_of("clip_alt_text", text=nothing))
