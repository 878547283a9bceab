"""Captions by models of transformers, tiny ones with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from i2e_pipeline.images.models import ModelError
from i2e_pipeline.train import captioner
from i2e_pipeline.train.captioner import CaptionerConfig
from tests.small_models import picture
from tests.verify import tiny

WORDS = ("a", "red", "dog", "on", "grass", "two", "cats", "sleep")


def encoder_decoder(folder: Path, seed: int = 0) -> Path:
    """A ViT that a GPT-2 looks at, as transformers saves one: the kind of most published captioners."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: n for n, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", bos_token="<end>", unk_token="<unk>"
    )
    vision = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_embd=16, n_layer=1, n_head=2, n_positions=64, add_cross_attention=True,
        is_decoder=True, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 1
    model = transformers.VisionEncoderDecoderModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # small weights say the same of every image
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=1, pad_token_id=0, eos_token_id=1, suppress_tokens=[0, 2]
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_decoder(tmp_path_factory.mktemp("captioner") / "model")


def config(folder: Path, **settings: int) -> CaptionerConfig:
    return CaptionerConfig(f"local-dir:{folder}", device="cpu", **{"captions": 3, "max_tokens": 6, **settings})


def test_an_encoder_decoder_captions_unasked(folder: Path) -> None:
    said = captioner.load(config(folder)).captions([picture(1), picture(2)], [11, 12])
    assert [len(one) for one in said] == [3, 3]
    assert {word for one in said for text in one for word in text.split()} <= set(WORDS)
    assert len({text for one in said for text in one}) > 2


def test_captions_follow_from_image_and_seed_alone(folder: Path) -> None:
    """Catches: captions that change with what was said before, or draws that change what others draw."""
    model = captioner.load(config(folder))
    images, seeds = [picture(n) for n in range(4)], [5, 2**63 + 9, 7, 8]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    together = model.captions(images, seeds)
    assert torch.equal(torch.rand(2), expected)
    again = captioner.load(config(folder))
    assert [again.captions([i], [s])[0] for i, s in zip(images[::-1], seeds[::-1], strict=True)][::-1] == together
    assert model.captions(images[:1], [6]) != together[:1]


def test_a_chat_model_is_asked_and_its_question_is_no_caption(tmp_path: Path) -> None:
    model = captioner.load(config(tiny.write(tmp_path / "chat")))
    said = model.captions([picture(1)], [1])[0]
    assert len(said) == 3
    assert set("".join(said)) <= set("012")


def test_what_names_a_captioner_changes_with_what_it_would_say(folder: Path, tmp_path: Path) -> None:
    other = encoder_decoder(tmp_path / "other", seed=1)
    configs = (config(folder), config(other), config(folder, max_tokens=7))
    assert len({captioner.fingerprint(one) for one in configs}) == 3
    assert captioner.fingerprint(config(folder)) == captioner.fingerprint(config(folder, captions=5))


def test_what_is_no_captioner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"captioner=local-dir:\S+: \S+config\.json does not exist"):
        captioner.load(config(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
        captioner.load(config(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"does not load: .*image-text-to-text with safetensors"):
        captioner.load(config(tmp_path))
