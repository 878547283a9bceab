"""Vectors of a data set: made once, by the right preprocessing, and nothing lost unsaid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from i2e_pipeline.core.config import EvaluateConfig
from i2e_pipeline.evaluate.datasets import open_dataset
from i2e_pipeline.evaluate.embed import embed
from i2e_pipeline.evaluate.encoders import CLIP_MEAN, CLIP_STD, EncoderError, ImageEncoder, open_encoder
from i2e_pipeline.evaluate.image_set import DatasetError, ImageSet
from tests.small_models import picture, stored

CONFIG = EvaluateConfig(batch_size=4, device="cpu")


@pytest.fixture
def data(tmp_path: Path) -> ImageSet:
    for number in range(10):
        path = tmp_path / "data" / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored(picture(number)))
    return open_dataset("mine", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def trained(models: Callable[[str], str]) -> ImageEncoder:
    return open_encoder(models("vit"), CONFIG)


def counting(encoder: ImageEncoder) -> tuple[ImageEncoder, list[int]]:
    """The encoder, and the sizes of the batches that its model is given from now on."""
    calls: list[int] = []

    def images(pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        return encoder.images(pixels)

    return replace(encoder, images=images), calls


def test_the_second_call_does_not_run_the_model(trained: ImageEncoder, data: ImageSet, tmp_path: Path) -> None:
    encoder, calls = counting(trained)
    first = embed(encoder, data, CONFIG, tmp_path / "vectors")
    assert (sum(calls), max(calls), first.cached) == (10, 4, False)
    again = embed(encoder, open_dataset("mine", str(tmp_path / "data")), CONFIG, tmp_path / "vectors")
    assert (sum(calls), again.cached) == (10, True)
    assert np.array_equal(first.vectors_ND, again.vectors_ND)
    assert first.vectors_ND.dtype == np.float32
    assert np.allclose(np.linalg.norm(first.vectors_ND, axis=1), 1, atol=1e-5)


def test_vectors_are_those_of_each_image_alone(trained: ImageEncoder, data: ImageSet, tmp_path: Path) -> None:
    made = embed(trained, data, CONFIG, tmp_path)
    for row in range(len(data)):
        alone = trained.images(trained.prepare(data.image(row))[None])[0]
        assert np.allclose(made.vectors_ND[row], alone, atol=1e-6)


def test_another_image_or_preprocessing_is_embedded_anew_and_other_labels_are_not(
    trained: ImageEncoder, models: Callable[[str], str], data: ImageSet, tmp_path: Path
) -> None:
    encoder, calls = counting(trained)
    embed(encoder, data, CONFIG, tmp_path / "vectors")
    embed(encoder, replace(data, labels_N=data.labels_N[::-1].copy()), CONFIG, tmp_path / "vectors")
    assert sum(calls) == 10
    (tmp_path / "data" / "class 0" / "0.png").write_bytes(stored(picture(99)))
    embed(encoder, open_dataset("mine", str(tmp_path / "data")), CONFIG, tmp_path / "vectors")
    assert sum(calls) == 20
    bfloat16 = open_encoder(models("vit"), CONFIG.model_copy(update={"dtype": "bfloat16"}))
    assert bfloat16.fingerprint != trained.fingerprint


def test_a_file_of_vectors_that_was_cut_short_is_made_again(
    trained: ImageEncoder, data: ImageSet, tmp_path: Path
) -> None:
    embed(trained, data, CONFIG, tmp_path / "vectors")
    (file,) = (tmp_path / "vectors").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    assert not embed(trained, data, CONFIG, tmp_path / "vectors").cached
    assert [f.name for f in (tmp_path / "vectors").iterdir()] == [file.name]


def test_an_embedding_that_was_stopped_goes_on_behind_its_last_part(
    trained: ImageEncoder, data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: hours of encoding that are lost with the process; rows and failures of one part counted as another's."""
    broken = tmp_path / "data" / "class 1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    data = open_dataset("mine", str(tmp_path / "data"))
    whole = embed(trained, data, CONFIG, tmp_path / "whole")
    monkeypatch.setattr("i2e_pipeline.evaluate.embed._PART", 4)
    encoder, calls = counting(trained)

    def stopping(pixels: np.ndarray) -> np.ndarray:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encoder.images(pixels)

    with pytest.raises(KeyboardInterrupt):
        embed(replace(trained, images=stopping), data, CONFIG, tmp_path / "vectors")
    parts = sorted((tmp_path / "vectors").glob("*.parts/*.npz"))
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:200])  # as by a full disk
    before = sum(calls)
    made = embed(encoder, data, CONFIG, tmp_path / "vectors")
    assert sum(calls) - before == 4 + 2  # the part that was cut and the one that was not begun
    assert np.array_equal(made.vectors_ND, whole.vectors_ND)
    assert np.array_equal(made.rows_N, whole.rows_N)
    assert made.failed == whole.failed
    assert list(made.failed) == ["class 1/3.png"]
    assert [path.suffix for path in (tmp_path / "vectors").iterdir()] == [".npz"]


def test_a_broken_image_is_named_and_left_out(trained: ImageEncoder, data: ImageSet, tmp_path: Path) -> None:
    broken = tmp_path / "data" / "class 1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    data = open_dataset("mine", str(tmp_path / "data"))
    made = embed(trained, data, CONFIG, tmp_path / "vectors")
    assert list(made.failed) == ["class 1/3.png"]
    assert made.failed["class 1/3.png"].startswith("truncated_image")
    assert [data.images.name(row) for row in made.rows_N] == [n for n in data.images.names if n != "class 1/3.png"]  # type: ignore
    assert embed(trained, data, CONFIG, tmp_path / "vectors").failed == made.failed


def test_a_broken_image_of_a_benchmark_stops_it(trained: ImageEncoder, data: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "data" / "class 1" / "3.png").write_bytes(b"<html>")
    with pytest.raises(DatasetError, match=r"class 1/3.png cannot be decoded: not_an_image.*from the archive again"):
        embed(trained, replace(data, known="dtd"), CONFIG, tmp_path / "vectors")
    assert not (tmp_path / "vectors").exists()


def test_a_set_without_a_readable_image_is_refused(trained: ImageEncoder, tmp_path: Path) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"none of its 1 images can be decoded: a/1\.png: empty_image"):
        embed(trained, open_dataset("mine", str(tmp_path / "data")), CONFIG, tmp_path)


def test_queries_are_cut_to_their_box_first(trained: ImageEncoder, data: ImageSet, tmp_path: Path) -> None:
    cut = embed(trained, replace(data, boxes={2: (5, 4, 40, 30)}), CONFIG, tmp_path).vectors_ND
    wanted = trained.images(trained.prepare(data.image(2).crop((5, 4, 40, 30)))[None])[0]
    assert np.allclose(cut[2], wanted, atol=1e-6)
    assert np.abs(cut - embed(trained, data, CONFIG, tmp_path).vectors_ND).max(axis=1).argmax() == 2


def test_vectors_that_are_not_finite_are_refused(trained: ImageEncoder, data: ImageSet, tmp_path: Path) -> None:
    def images(pixels: np.ndarray) -> np.ndarray:
        return np.full((len(pixels), trained.width), np.nan, np.float32)

    with pytest.raises(EncoderError, match=r"the vector of class 0/0\.png is not finite"):
        embed(replace(trained, images=images), data, CONFIG, tmp_path)


# -- encoders -----------------------------------------------------------------------------------------------------


def test_an_untrained_control_is_a_function_of_the_seed(models: Callable[[str], str], trained: ImageEncoder) -> None:
    state = torch.get_rng_state()
    spec = f"{models('vit')}@random"
    first, same, other = (
        open_encoder(spec, CONFIG.model_copy(update={"seed": seed})) for seed in (0, 0, 1)
    )  # fmt: skip
    pixels = first.prepare(picture(1))[None]
    assert np.array_equal(first.images(pixels), same.images(pixels))
    assert first.fingerprint == same.fingerprint
    assert len({first.fingerprint, other.fingerprint, trained.fingerprint}) == 3
    assert not np.allclose(first.images(pixels), other.images(pixels), atol=1e-3)
    assert torch.equal(state, torch.get_rng_state())


def test_mofi_preprocessing_is_the_published_one(models: Callable[[str], str]) -> None:
    config = CONFIG.model_copy(update={"preprocessing": "mofi-gpr1200"})
    encoder = open_encoder(_takes_224(models), config)
    published = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(224, antialias=False),
            transforms.CenterCrop(224),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    image = picture(3, (500, 310))
    assert np.array_equal(encoder.prepare(image), published(image).numpy())
    assert encoder.fingerprint != open_encoder(_takes_224(models), CONFIG).fingerprint


def _takes_224(models: Callable[[str], str]) -> str:
    """A model whose input is 224 px a side, in the folder of another."""
    import json

    source = Path(models("vit").removeprefix("local-dir:"))
    folder = source.with_name(f"{source.name}-224")
    if not folder.exists():
        import open_clip
        from safetensors.torch import save_file

        folder.mkdir()
        config: dict[str, Any] = json.loads((source / "open_clip_config.json").read_text())
        config["model_cfg"]["vision_cfg"] |= {"image_size": 224, "patch_size": 56}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def test_a_model_of_another_size_refuses_mofi_preprocessing(models: Callable[[str], str]) -> None:
    with pytest.raises(EncoderError, match="mofi-gpr1200 gives 224 px"):
        open_encoder(models("vit"), CONFIG.model_copy(update={"preprocessing": "mofi-gpr1200"}))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ViT-B-16", "names no weights: ViT-B-16@WEIGHTS"),
        ("local-dir:/no/such/folder", "/no/such/folder/open_clip_config.json does not exist"),
        ("hf:nobody/nothing", "nothing is fetched here: `hf download nobody/nothing` first"),
        ("vectors:/no/such/folder", "is no folder"),
        ("label=", "names no model"),
        ("ViT-B-61@random", r"ViT-B-61: open_clip knows no such architecture; near to it are ViT-B-16"),
    ],
)
def test_an_encoder_that_is_not_there_says_what_to_write(spec: str, says: str) -> None:
    with pytest.raises(EncoderError, match=says):
        open_encoder(spec, CONFIG)


def _write_hugging_face(folder: Path, kind: str) -> Any:
    """A small random transformers model, its image processor and, for two towers, a tokenizer of nine words."""
    import transformers

    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    text = {k: v for k, v in vision.items() if k not in ("image_size", "patch_size")}
    text |= {"vocab_size": 10, "max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        model: Any = transformers.CLIPModel(config)
        processor: Any = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    elif kind == "siglip":
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    else:
        del vision["intermediate_size"]
        model = transformers.Dinov2Model(transformers.Dinov2Config(**vision))
        processor = transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    if kind != "dinov2":
        _tokenizer().save_pretrained(folder)
    return model, processor


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ("<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "dog", "cat", "bird")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        model_max_length=16,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_hugging_face_vectors_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model, processor = _write_hugging_face(tmp_path / kind, kind)
    encoder = open_encoder(f"hf:{tmp_path / kind}", CONFIG)
    assert encoder.label == kind
    image = picture(1, (50, 40))
    texts = ["a photo of a dog", "cat"]
    with torch.no_grad():
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        if kind == "dinov2":
            wanted = model(pixel_values=pixels).pooler_output
        else:
            wanted = model.get_image_features(pixel_values=pixels)
            tokens = _tokenizer()(texts, padding="max_length", max_length=16, return_tensors="pt")
            told = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            assert encoder.texts is not None
            assert np.allclose(encoder.texts(texts), _unit(told), atol=1e-5)
    assert np.allclose(encoder.images(encoder.prepare(image)[None]), _unit(wanted), atol=1e-5)
    assert (encoder.texts is None) == (kind == "dinov2")


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    """Catches: the empty tokenizer that transformers makes where there are no files, for which all texts are one."""
    pytest.importorskip("transformers")
    _write_hugging_face(tmp_path / "clip", "clip")
    place = tmp_path / "clip" / "tokenizer.json"
    kept = place.read_text()
    place.write_text(kept.replace('"cat": 8', '"cat": 99999'))
    with pytest.raises(EncoderError, match=r"token 99999, and the text tower has 10.*another model"):
        open_encoder(f"hf:{tmp_path / 'clip'}", CONFIG)
    for file in (tmp_path / "clip").glob("*token*"):
        file.unlink()
    with pytest.raises(EncoderError, match=r"does not tell 'a photo of a dog' from .*tokenizer files into that folder"):
        open_encoder(f"hf:{tmp_path / 'clip'}", CONFIG)


def _unit(features: Any) -> np.ndarray:
    features = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(features, dim=-1).numpy()


# -- stored vectors -----------------------------------------------------------------------------------------------


def test_stored_vectors_stand_for_a_model(data: ImageSet, tmp_path: Path) -> None:
    folder = tmp_path / "stored"
    folder.mkdir()
    rows = np.random.default_rng(0).normal(size=(10, 6))
    np.savez(folder / "mine.npz", features=rows)
    encoder = open_encoder(f"vectors:{folder}", CONFIG)
    made = embed(encoder, data, CONFIG, tmp_path / "vectors")
    assert np.allclose(made.vectors_ND, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)
    assert encoder.texts is None
    np.savez(folder / "mine.npz", Q=rows[:3].T, X=rows[3:].T)
    assert np.allclose(embed(encoder, data, CONFIG, tmp_path).vectors_ND, made.vectors_ND)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"features": np.ones((9, 4))}, "holds 9 vectors and mine has 10 images"),
        ({"features": np.vstack([np.ones((9, 4)), np.zeros((1, 4))])}, "row 9 has only zeros"),
        ({"features": np.vstack([np.full((1, 4), np.nan), np.ones((9, 4))])}, "row 0 has a NaN"),
        ({"x": np.ones((10, 4))}, "holds x: wanted are `features`"),
        ({"features": np.array([{}] * 10)}, "is not a file of vectors: objects are stored"),
        ({"features": np.ones(10)}, r"a table of vectors is wanted .* not shape \(10,\)"),
        ({"features": np.array([["a", "b"]] * 10)}, "numbers are wanted"),
        ({"features": np.ones((4, 10))}, r"holds 4 vectors, which looks transposed \(n × d is wanted\)"),
    ],
)
def test_stored_vectors_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray], says: str, data: ImageSet, tmp_path: Path
) -> None:
    folder = tmp_path / "stored"
    folder.mkdir()
    np.savez(folder / "mine.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=says):
        embed(open_encoder(f"vectors:{folder}", CONFIG), data, CONFIG, tmp_path)


def test_a_data_set_without_stored_vectors_is_named(data: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "stored").mkdir()
    with pytest.raises(DatasetError, match=r"stored/mine.npz does not exist"):
        embed(open_encoder(f"vectors:{tmp_path / 'stored'}", CONFIG), data, CONFIG, tmp_path)


def test_images_in_arrays_are_embedded_too(trained: ImageEncoder, data: ImageSet, tmp_path: Path) -> None:
    from i2e_pipeline.evaluate.image_set import Pixels

    arrays = np.stack([np.asarray(data.image(row)) for row in range(10)])
    (tmp_path / "file").write_bytes(b"")
    packed = Pixels((arrays[:4], arrays[4:]), (str(tmp_path / "file"),) * 2)
    assert isinstance(next(iter(packed.read([5]))), Image.Image)
    made = embed(trained, replace(data, images=packed), CONFIG, tmp_path)
    assert np.array_equal(made.vectors_ND, embed(trained, data, CONFIG, tmp_path).vectors_ND)
