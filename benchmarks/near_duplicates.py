"""Near-duplicates: which planted copies are found, what is merged wrongly, and how the cost grows.

    python benchmarks/near_duplicates.py [--parquet 'PAIRS/*.parquet'] [--images 600] [--copies 100] [--bits 40]
                                         [--model local-dir:FOLDER] [--cosine .95 .97] [--grow 20000] [--stock 100000]

Planted: of --copies images each a copy that was re-encoded, scaled, mirrored, brightened, watermarked, cropped by 2 to
20 per cent of each side. An image's entity is its known truth; where none is known, all are one entity, which is
harder. Figures by perceptual hash alone, and with vectors of the model from each cosine on:

    found     of the copies of each kind, the share that is in one group with its original
    merged    pairs of different originals in one group: wrong, unless the data themselves hold copies

Growth: random hashes over 200 entities of falling frequency; --grow of them, and 2 to 16 times as many. Before them
stands how many times as often two of the images share a band of their hashes as two random ones. Printed are processor
seconds, pairs that are compared for an image, and the rows of the largest bucket.
`stock`: --stock copies of one picture in one entity, in processor time against as many different images.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.loader import sources
from i2e_pipeline.clean import buckets, signatures
from i2e_pipeline.core.config import CleanConfig, ImageLimits, ScoreConfig
from i2e_pipeline.core.files import find
from i2e_pipeline.images.decode import Rejected, open_rgb, perceptual_hashes, thumbnail
from i2e_pipeline.images.encoder import load_once
from i2e_pipeline.images.near_hashes import MIRROR
from i2e_pipeline.sample import compose, watermark

ENTITIES = 200
SCORER = Path(compose.__file__).parent / "models" / "scorer"


def reencoded(image: Image.Image, quality: int = 75) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(io.BytesIO(content.getvalue())).convert("RGB")


def scaled(by: int) -> Callable[[Image.Image], Image.Image]:
    return lambda image: reencoded(image.resize((max(1, image.width // by), max(1, image.height // by))))


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    def crop(image: Image.Image) -> Image.Image:
        left, top = round(image.width * share / 2), round(image.height * share / 2)
        return image.crop((left, top, image.width - left, image.height - top))

    return crop


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded, quality 30": lambda image: reencoded(image, 30),
    "scaled to 1/2": scaled(2),
    "scaled to 1/3": scaled(3),
    "mirrored": lambda image: reencoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "brightened": lambda image: image.point(lambda value: min(255, int(value * 1.25))),
    "watermarked": watermark.banner,
    "cropped by 2 %": cropped(0.02),
    "cropped by 5 %": cropped(0.05),
    "cropped by 10 %": cropped(0.1),
    "cropped by 20 %": cropped(0.2),
}


def read_images(patterns: Sequence[str], column: str, count: int) -> tuple[list[Image.Image], list[int]]:
    """Different images and the entity of each."""
    images: list[Image.Image] = []
    entities: list[int] = []
    seen: set[bytes] = set()
    for file in find(tuple(patterns), ".parquet"):
        for row in pq.read_table(file.path).to_pylist():
            stored = row[column]["bytes"] if isinstance(row[column], dict) else row[column]
            opened = open_rgb(stored, ImageLimits())
            if isinstance(opened, Rejected) or stored in seen:
                continue
            seen.add(stored)
            images.append(opened[0])
            truth = row.get("truth_qid") or (row.get("labels") or [{}])[0].get("entity_id")
            number = str(truth).removeprefix("Q")
            entities.append(int(number) if number.isdigit() else 0)
            if len(images) == count:
                return images, entities
    return images, entities


def rows_of(signatures_N32: np.ndarray, entities: Sequence[int]) -> pa.RecordBatch:
    ids = [b"%016d" % number for number in range(len(entities))]
    columns = [pa.array(ids), pa.array([one.tobytes() for one in signatures_N32]), pa.array([[e] for e in entities])]
    return pa.RecordBatch.from_arrays(columns, names=["image_id", "signature", "entities"])


def near(rows: pa.RecordBatch, bits: int, mirrored: bool) -> np.ndarray:
    """Pairs (M, 2) of rows, as the stage's two kernels and a sort between them find them."""
    keyed = pa.Table.from_batches(list(buckets.keyed(rows_in_parts(rows), mirrored)), buckets.KEYED)
    in_order = keyed.sort_by([("bucket", "ascending"), ("image_id", "ascending")])
    found = pa.Table.from_batches(list(buckets.near(in_order.to_batches(10_000), bits, mirrored)), buckets.NEAR)
    pairs = np.array([[int(a), int(b)] for a, b in zip(*(c.to_pylist() for c in found.columns), strict=True)])
    return np.unique(pairs.reshape(-1, 2), axis=0)


def rows_in_parts(rows: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
    return (rows.slice(start, 10_000) for start in range(0, rows.num_rows, 10_000))


def groups(count: int, pairs: np.ndarray) -> np.ndarray:
    """The smallest row of each row's group."""
    root_N = np.arange(count)
    while True:
        before = root_N.copy()
        for one, other in ((0, 1), (1, 0)):
            np.minimum.at(root_N, pairs[:, one], root_N[pairs[:, other]])
        root_N = root_N[root_N]
        if np.array_equal(before, root_N):
            return root_N


def planted(options: argparse.Namespace) -> dict[str, Any]:
    images, entities = read_images(*sources(options), options.images)
    originals = len(images)
    step = max(1, originals // options.copies)
    of, kinds = [], []
    for kind, edit in EDITS.items():
        for original in range(0, originals, step)[: options.copies]:
            images.append(edit(images[original]))
            of.append(original)
            kinds.append(kind)
    entities += [entities[original] for original in of]
    hashes = perceptual_hashes(np.stack([thumbnail(image) for image in images]))
    by_hash = near(rows_of(hashes, entities), options.bits, True)
    figures: dict[str, Any] = {"images": originals, "copies of each kind": kinds.count(kinds[0])}
    figures["hash"] = told(len(images), originals, by_hash, of, kinds)
    encoder = load_once(ScoreConfig(model=options.model))
    vectors = np.concatenate(
        [
            encoder.images(np.stack([encoder.prepare(one) for one in images[n : n + 64]]))
            for n in range(0, len(images), 64)
        ]
    ).astype(np.float16)
    signed = rows_of(signatures.of_vectors(vectors), entities)
    for cosine in options.cosine:
        pairs = near(signed, signatures.bits_apart(cosine), False)
        alike = signatures.cosines(vectors[pairs[:, 0]], vectors[pairs[:, 1]]) >= cosine
        both = np.concatenate([by_hash, pairs[alike]])
        figures[f"hash and cosine {cosine:g}"] = told(len(images), originals, both, of, kinds)
    return figures


def told(count: int, originals: int, pairs: np.ndarray, of: Sequence[int], kinds: Sequence[str]) -> dict[str, Any]:
    kind_N = np.concatenate([np.full(originals, ""), np.array(kinds)])
    of_N = np.concatenate([np.arange(originals), np.array(of)])
    found = {}
    for kind in EDITS:
        # Alone beside the originals: copies of other kinds would lead from one to the other.
        here_N = (kind_N == "") | (kind_N == kind)
        root_N = groups(count, pairs[here_N[pairs].all(axis=1)])
        copies = np.flatnonzero(kind_N == kind)
        found[kind] = round(float((root_N[copies] == root_N[of_N[copies]]).mean()), 3)
    sizes = np.bincount(groups(count, pairs[(pairs < originals).all(axis=1)])[:originals])
    return {"found": found, "merged": int((sizes * (sizes - 1) // 2).sum())}


def times_random(real: np.ndarray) -> float:
    """How many times as often two real images share a band as two random hashes that may be mirrored."""
    bands = real.view(np.uint16)
    bands = np.minimum(bands, bands ^ MIRROR.view(np.uint16))
    share = 0
    for values in bands.T:
        counts = np.unique(values, return_counts=True)[1]
        share += (counts * (counts - 1)).sum() / (len(real) * (len(real) - 1))
    return round(float(share / buckets.BANDS * (1 << 15)), 2)


def random_hashes(count: int, draw: np.random.Generator) -> np.ndarray:
    return draw.integers(0, 256, (count, 32), dtype=np.uint8)


def cost(hashes: np.ndarray, entities: np.ndarray, bits: int) -> dict[str, float]:
    compared = [0]
    plain = buckets._Comparing.near

    def counted(self: buckets._Comparing, one: Any, other: Any) -> Any:
        compared[0] += len(one)
        return plain(self, one, other)

    rows = rows_of(hashes, entities.tolist())
    keyed = pa.Table.from_batches(list(buckets.keyed(rows_in_parts(rows), True)), buckets.KEYED)
    largest = int(np.unique(np.asarray(keyed["bucket"]), return_counts=True)[1].max())
    buckets._Comparing.near = counted  # type: ignore[method-assign]
    started = time.process_time()
    try:
        near(rows, bits, True)
    finally:
        buckets._Comparing.near = plain  # type: ignore[method-assign]
    seconds = time.process_time() - started
    return {"cpu_seconds": round(seconds, 2), "compared_per_image": round(compared[0] / len(hashes), 2),
            "largest_bucket": largest}  # fmt: skip


def growth(options: argparse.Namespace) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    images, _ = read_images(*sources(options), options.images)
    real = perceptual_hashes(np.stack([thumbnail(image) for image in images]))
    share = 1 / np.arange(1, ENTITIES + 1)
    figures: dict[str, Any] = {"bands_shared_times_random": times_random(real)}
    for times in (1, 2, 4, 8, 16):
        count = options.grow * times
        entities = draw.choice(ENTITIES, count, p=share / share.sum())
        figures[f"{times}x"] = {"images": count, **cost(random_hashes(count, draw), entities, options.bits)}
    first, last = figures["1x"], figures["16x"]
    figures["cpu_times_at_16x"] = round(last["cpu_seconds"] / max(first["cpu_seconds"], 0.01), 1)
    bits = np.unpackbits(np.broadcast_to(real[0], (options.stock, 32)), axis=1)
    bits ^= (draw.random(bits.shape) < 0.01).astype(np.uint8)
    one = np.zeros(options.stock, dtype=np.int64)
    of_stock = cost(np.packbits(bits, axis=1), one, options.bits)
    others = cost(random_hashes(options.stock, draw), one, options.bits)
    figures["stock"] = {"copies": options.stock, **of_stock}
    figures["stock_times_different"] = round(of_stock["cpu_seconds"] / max(others["cpu_seconds"], 0.01), 2)
    return figures


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parquet", nargs="+", help="Parquet files, folders or globs (default: the sample's images)")
    parser.add_argument("--image-column", default="jpg")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--bits", type=int, default=CleanConfig().near_bits)
    parser.add_argument("--model", default=f"local-dir:{SCORER}")
    parser.add_argument("--cosine", type=float, nargs="*", default=[0.9, 0.95, 0.97])
    parser.add_argument("--grow", type=int, default=20_000)
    parser.add_argument("--stock", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    figures = {"planted": planted(options), "growth": growth(options)}
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
