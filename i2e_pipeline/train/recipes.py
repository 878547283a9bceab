"""Recipes: what is trained, from one batch to its losses.

Reads    Encoded (what the towers made of the batch), Batch, the entity head
Writes   {"loss": what is differentiated, and its parts by name: classification, contrastive, affinity,
         distillation}

supervised           cosine softmax over all entities
contrastive          images against texts
multi_task           λ · classification + (1 − λ) · contrastive, one image tower for both: MOFI (arXiv 2306.07952)
clip_alt_text        control: CLIP on the same images and their alt-texts; the labels are not looked at
clip_entity_text     control: CLIP on the same images and the names and descriptions of their entities

With `train.loss.distillation` above 0 each of them also distils stored image vectors, with `train.reinforce.vectors`
those of the stored augmentation. With `train.reinforce.affinity` λ_a above 0 the contrastive part of a recipe is
(1 − λ_a) · contrastive + λ_a · affinity (MobileCLIP, arXiv 2311.17049).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from i2e_pipeline.core.config import TextConfig, TrainConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.train import losses
from i2e_pipeline.train.batch import Batch, Encoded
from i2e_pipeline.train.parallel import World


class RecipeError(I2EError, ValueError):
    """Settings that make no sense together; the message names them and the way out."""


@dataclass(frozen=True)
class Recipe:
    """What one batch is trained on. `losses` returns this rank's part: the mean over ranks is the global loss."""

    config: TrainConfig
    uses_text = False
    uses_classes = False
    """Whether there is an entity head."""

    @property
    def name(self) -> str:
        return self.config.recipe

    @property
    def uses_teacher(self) -> bool:
        """Whether stored vectors of the whole image are distilled."""
        return self.config.loss.distillation > 0

    @property
    def distils(self) -> float:
        """Weight of the distance to stored image vectors, of the whole image or of the stored augmentation."""
        return self.config.loss.distillation or self.config.reinforce.vectors

    def check(self) -> None:
        """Raises RecipeError."""

    def text_probabilities(self) -> tuple[float, float, float]:
        """How often an image's text is its alt-text, its entity's name, name and description; their sum is 1, or 0
        where no texts are used."""
        return _normalised(self.wanted_texts(self.config.text), self.name) if self.uses_text else (0.0, 0.0, 0.0)

    def wanted_texts(self, text: TextConfig) -> tuple[float, float, float]:
        return text.alt_text, text.name, text.name_and_description

    def losses(
        self,
        encoded: Encoded,
        batch: Batch,
        head: Any,
        world: World,
        step: int,
        contrastive: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss and its parts.

        head          an EntityHead, or None where the recipe uses no classes
        contrastive   that loss, where it was computed over more than this batch (shared_negatives.py)
        """
        parts = self.parts(encoded, batch, head, world, step, contrastive)
        if self.distils:
            assert encoded.distilled_BT is not None
            assert batch.teacher_BT is not None
            distillation = losses.distillation(encoded.distilled_BT, batch.teacher_BT, world)
            parts["loss"] = parts["loss"] + self.distils * distillation
            parts["distillation"] = distillation
        return {name: part if name == "loss" else part.detach() for name, part in parts.items()}

    def parts(
        self, encoded: Encoded, batch: Batch, head: Any, world: World, step: int, contrastive: Tensor | None
    ) -> dict[str, Tensor]:
        raise NotImplementedError


class Supervised(Recipe):
    uses_classes = True

    def parts(
        self, encoded: Encoded, batch: Batch, head: Any, world: World, step: int, contrastive: Tensor | None
    ) -> dict[str, Tensor]:
        classification = head.loss(encoded.image_BD, batch.class_B, batch.classes_BK, step)
        return {"loss": classification, "classification": classification}


class Contrastive(Recipe):
    uses_text = True

    def knows_entities(self) -> bool:
        return not self.config.loss.equal_entities_are_negatives

    def contrast(self, encoded: Encoded, classes_BK: Tensor, world: World) -> Tensor:
        """The loss between images and texts; classes_BK as in Batch."""
        assert encoded.text_BD is not None
        known_BK = classes_BK if self.knows_entities() else None
        pair = (encoded.image_BD, encoded.text_BD, encoded.scale)
        if self.config.loss.contrastive == "siglip":
            assert encoded.bias is not None
            return losses.siglip(*pair, encoded.bias, known_BK, world)
        return losses.info_nce(*pair, known_BK, world)

    def parts(
        self, encoded: Encoded, batch: Batch, head: Any, world: World, step: int, contrastive: Tensor | None
    ) -> dict[str, Tensor]:
        if contrastive is None:
            contrastive = self.contrast(encoded, batch.classes_BK, world)
        share = self.config.reinforce.affinity
        if not share:
            return {"loss": contrastive, "contrastive": contrastive}
        assert encoded.text_BD is not None
        assert batch.teacher_BT is not None
        assert batch.teacher_text_BT is not None
        affinity = losses.affinity(
            encoded.image_BD,
            encoded.text_BD,
            encoded.scale,
            batch.teacher_BT,
            batch.teacher_text_BT,
            batch.teachers,
            world,
        )
        loss = (1 - share) * contrastive + share * affinity
        return {"loss": loss, "contrastive": contrastive, "affinity": affinity}


class MultiTask(Contrastive):
    uses_classes = True

    def check(self) -> None:
        share = self.config.loss.classification
        if share in (0, 1):
            other = "supervised" if share else "contrastive"
            raise RecipeError(
                f"train.loss.classification={share:g} leaves multi_task one loss: set train.recipe={other} instead"
            )

    def parts(
        self, encoded: Encoded, batch: Batch, head: Any, world: World, step: int, contrastive: Tensor | None
    ) -> dict[str, Tensor]:
        parts = super().parts(encoded, batch, head, world, step, contrastive)
        classification = head.loss(encoded.image_BD, batch.class_B, batch.classes_BK, step)
        share = self.config.loss.classification
        loss = share * classification + (1 - share) * parts.pop("loss")
        return {"loss": loss, "classification": classification, **parts}


class ClipAltText(Contrastive):
    def wanted_texts(self, text: TextConfig) -> tuple[float, float, float]:
        return 1.0, 0.0, 0.0

    def knows_entities(self) -> bool:
        return False  # whatever the config says: CLIP has no labels, and a control that used them would be none


class ClipEntityText(Contrastive):
    def wanted_texts(self, text: TextConfig) -> tuple[float, float, float]:
        return 0.0, text.name, text.name_and_description


_KINDS: dict[str, type[Recipe]] = {
    "multi_task": MultiTask,
    "supervised": Supervised,
    "contrastive": Contrastive,
    "clip_alt_text": ClipAltText,
    "clip_entity_text": ClipEntityText,
}


def recipe(config: TrainConfig) -> Recipe:
    """The recipe that `train.recipe` names. Raises RecipeError where its settings make no sense together."""
    chosen = _KINDS[config.recipe](config)
    chosen.check()
    _check_reinforcement(chosen)
    chosen.text_probabilities()
    return chosen


def _check_reinforcement(chosen: Recipe) -> None:
    wanted, loss = chosen.config.reinforce, chosen.config.loss
    of_texts = [name for name in ("affinity", "captions") if getattr(wanted, name)]
    if of_texts and not chosen.uses_text:
        raise RecipeError(
            f"train.reinforce.{of_texts[0]} is about texts, and train.recipe={chosen.name} has none: set it to 0 "
            "(vectors alone can be distilled), or take another recipe"
        )
    if wanted.vectors and loss.distillation:
        raise RecipeError(
            "train.reinforce.vectors and train.loss.distillation both distil image vectors, of the augmentation that "
            "is seen and of the whole image: set one of them to 0"
        )


def _normalised(weights: tuple[float, float, float], name: str) -> tuple[float, float, float]:
    total = sum(weights)
    if total <= 0:
        keys = "name and name_and_description are" if name == "clip_entity_text" else "all of train.text's shares are"
        raise RecipeError(f"train.recipe={name} contrasts images with texts, and {keys} 0: give train.text one above 0")
    alt_text, entity_name, described = (weight / total for weight in weights)
    return alt_text, entity_name, described
