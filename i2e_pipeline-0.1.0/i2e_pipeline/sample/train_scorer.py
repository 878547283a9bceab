"""Train the sample's image–text model:  python -m i2e_pipeline.sample.train_scorer

A small CLIP in open_clip's format (`open_clip_config.json`, `open_clip_model.safetensors`), trained from scratch on
scenes of every art style but the held-out one, against the texts of the whole world: what is drawn, and the films,
bands, people and elements that share its names, as negatives. One process draws, the other learns; a thread each.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import json
import math
import multiprocessing as mp
import random
import time
from collections.abc import Iterator, Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from i2e_pipeline.sample.augment import SceneStream, training_sprites
from i2e_pipeline.sample.captions import usable
from i2e_pipeline.sample.judge import ask, text_of
from i2e_pipeline.sample.world import HERE, load_world

MODEL = HERE / "models" / "scorer"
SIZE = 64
POOL = 40
"""Batches kept to be shown once more."""
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIZE, "layers": [2, 2, 2, 2], "width": 16, "head_width": 64},
        # The token table is most of the text tower: 49,408 rows, of which some 2,000 occur here.
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "shortest", "size": SIZE,
    },
}  # fmt: skip


def keep_memory() -> None:
    """Let glibc keep the memory of freed tensors. Asking the kernel for it anew made elementwise steps six times
    slower."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    except OSError:
        pass  # another libc: slower, the same result


class Texts:
    """A text for each entity, drawn anew at every step from the ways in which the pipeline may name it."""

    def __init__(self, seed: int, context: int) -> None:
        world = load_world()
        self.entities = [*world.depicted, *world.others]
        self.drawn = len(world.depicted)
        self.rng = random.Random(f"texts/{seed}")
        tokenizer = open_clip.SimpleTokenizer(context_length=context)
        self.ways: list[list[Tensor]] = []
        for e in self.entities:
            names = usable(e)
            about = f", {e.description}" if e.description else ""
            ways = [text_of(e)] * 8
            ways += [name + about for name in names[1:4]] + [e.label + about.lower(), e.label.lower() + about]
            # Bare names only where nobody else bears them: else the text does not say which is meant.
            ways += [name for name in (e.label, *names[:2]) if len(world.bearers.get(name.casefold(), (0,))) == 1]
            self.ways.append(list(tokenizer(ways)))

    def sample(self, others: int = 64) -> Tensor:
        """tokens_TL: texts of all drawn entities, in order, then those of some others, which only share names or fill
        the dump."""
        rows = [*range(self.drawn), *self.rng.sample(range(self.drawn, len(self.ways)), others)]
        tokens = torch.stack([self.rng.choice(self.ways[i]) for i in rows])
        longest = int((tokens != 0).sum(1).max())
        return tokens[:, :longest]


def encode_text(model: nn.Module, tokens_TL: Tensor) -> Tensor:
    """open_clip's text tower on tokens cut to their true length: the same vectors, several times as fast."""
    m: Any = model
    length = tokens_TL.shape[1]
    x = m.token_embedding(tokens_TL) + m.positional_embedding[:length]
    x = m.transformer(x, attn_mask=m.attn_mask[:length, :length])
    x = m.ln_final(x)
    x = x[torch.arange(len(x)), tokens_TL.argmax(-1)] @ m.text_projection
    return F.normalize(x, dim=-1)


def _produce(queue: Queue[tuple[Any, Any]], steps: int, batch: int, seed: int, leave_out: tuple[str, ...]) -> None:
    keep_memory()
    torch.set_num_threads(1)
    stream = SceneStream(training_sprites(leave_out), SIZE, batch, seed)
    pool: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        # Half of the batches are earlier scenes, moved and in another light: drawing new ones costs as much as
        # learning.
        if len(pool) == POOL and step % 2:
            pixels, entity = stream.again(*pool.pop(step // 2 % POOL))
        else:
            stream.strength = min(1.0, 0.3 + 0.7 * step / (0.4 * steps))
            pixels, entity = stream.next()
            if len(pool) < POOL:
                pool.append((pixels, entity))
        # Arrays are copied; shared tensors would vanish with the process that made them.
        queue.put(((pixels * 255).to(torch.uint8).numpy(), entity.numpy()))


def scenes(steps: int, batch: int, seed: int, leave_out: tuple[str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches from another process, in order."""
    context = mp.get_context("spawn")
    queue = context.Queue(8)
    worker = context.Process(target=_produce, args=(queue, steps, batch, seed, leave_out), daemon=True)
    worker.start()
    for _ in range(steps):
        pixels, entity = queue.get(timeout=600)
        yield torch.from_numpy(pixels), torch.from_numpy(entity)
    worker.join()


def loss_of(image_BD: Tensor, text_TD: Tensor, entity_B: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Softmax over all texts, which orders them, and a sigmoid on each, so that one threshold fits all texts."""
    logits = scale * image_BD @ text_TD.T
    order = F.cross_entropy(logits, entity_B, label_smoothing=0.05)
    target = torch.zeros_like(logits).scatter_(1, entity_B[:, None], 1.0)
    each = F.binary_cross_entropy_with_logits(logits + bias, target, reduction="none")
    return order + 0.3 * each.sum(1).mean()


def follow(mean_model: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the running mean of the weights towards the model's."""
    for a, b in zip(mean_model.state_dict().values(), model.state_dict().values(), strict=True):
        if a.is_floating_point():
            a.lerp_(b, 1 - decay)
        else:
            a.copy_(b)


def train(steps: int, batch: int, seed: int, leave_out: tuple[str, ...] = (), lr: float = 2e-3) -> nn.Module:
    """The model whose weights are the running mean over the last part of training."""
    torch.manual_seed(seed)
    model: Any = open_clip.CLIP(**CONFIG["model_cfg"])
    texts = Texts(seed, CONFIG["model_cfg"]["text_cfg"]["context_length"])
    model.visual = model.visual.to(memory_format=torch.channels_last)
    bias = nn.Parameter(torch.tensor(-8.0))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(12.0))
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim >= 2 and "embedding" not in n)] + [bias]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=lr, total_steps=steps, pct_start=0.08, cycle_momentum=False
    )
    mean_model = copy.deepcopy(model)
    mean_B = torch.tensor(MEAN).view(1, 3, 1, 1)
    std_B = torch.tensor(STD).view(1, 3, 1, 1)
    model.train()
    text_TD = torch.empty(0)
    begun, seen, hits = time.time(), 0, 0
    for step, (pixels, entity) in enumerate(scenes(steps, batch, seed, leave_out)):
        x = ((pixels.float() / 255 - mean_B) / std_B).contiguous(memory_format=torch.channels_last)
        # The texts' vectors change slowly: every other step uses those of the step before.
        if step % 2 == 0 or step < steps // 10:
            text_TD = encode_text(model, texts.sample())
        else:
            text_TD = text_TD.detach()
        with torch.autocast("cpu", torch.bfloat16):
            image_BD = model.visual(x)
        image_BD = F.normalize(image_BD.float(), dim=-1)
        loss = loss_of(image_BD, text_TD, entity, model.logit_scale.exp(), bias)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(math.log(8.0), math.log(30.0))
            if step % 4 == 3:
                follow(mean_model, model, min(0.99, step / (step + 40)))
            hits += int(((image_BD @ text_TD[: texts.drawn].T).argmax(1) == entity).sum())
        seen += len(entity)
        if step % 50 == 49:
            rate = (step + 1) * batch / (time.time() - begun)
            print(
                f"step {step + 1}/{steps} loss {loss.item():.3f} top-1 {hits / seen:.3f} "
                f"scale {model.logit_scale.exp().item():.1f} bias {bias.item():.1f} {rate:.0f} scenes/s",
                flush=True,
            )
            seen = hits = 0
    return mean_model


def save(model: nn.Module, folder: Path) -> None:
    """Weights as float16. Rows of tokens that no training text holds become zero, so that they compress well."""
    folder.mkdir(parents=True, exist_ok=True)
    used = torch.zeros(CONFIG["model_cfg"]["text_cfg"]["vocab_size"], dtype=torch.bool)
    for ways in Texts(0, CONFIG["model_cfg"]["text_cfg"]["context_length"]).ways:
        used[torch.stack(ways).flatten()] = True
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"] * used[:, None]
    weights = folder / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, weights, {"format": "pt"})
    weights.chmod(0o644)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def evaluate(folder: Path, rows: int, precision: float = 0.97) -> str:
    """Figures of a saved model, loaded as a user would. The threshold is chosen on training draws, the figures are of
    held-out ones."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    def image(x: Tensor) -> Tensor:
        return F.normalize(model.encode_image(x), dim=-1)

    def text(t: Sequence[str]) -> Tensor:
        return F.normalize(model.encode_text(tokenizer(list(t))), dim=-1)

    def prepare(picture: Image.Image) -> Tensor:
        tensor: Tensor = preprocess(picture)
        return tensor

    known = ask(image, text, prepare, "training", rows)
    threshold = known.threshold_for(precision)
    unknown = ask(image, text, prepare, "heldout", rows)
    lines = [
        f"training draws: threshold {threshold:.3f} for precision {precision}",
        known.report(threshold),
        "held-out draws:",
        unknown.report(threshold),
    ]
    for t in (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55):
        p, r = unknown.precision_recall(t)
        p_style, r_style = unknown.precision_recall(t, unknown.held_out)
        lines.append(f"  threshold {t:.2f}: all P {p:.3f} R {r:.3f} · held-out style P {p_style:.3f} R {r_style:.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and judge the sample's image–text model.")
    parser.add_argument("--output", type=Path, default=MODEL)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=2000, help="draws to judge by")
    parser.add_argument(
        "--leave-out",
        nargs="*",
        default=[],
        help="further art styles to keep out of training, to try a change without looking at the held-out one",
    )
    parser.add_argument("--only-judge", action="store_true", help="do not train: judge what lies in --output")
    a = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    if not a.only_judge:
        save(train(a.steps, a.batch, a.seed, tuple(a.leave_out)), a.output)
    print(f"{sum(f.stat().st_size for f in a.output.iterdir()):,} bytes in {a.output}")
    print(evaluate(a.output, a.rows))


if __name__ == "__main__":
    main()
