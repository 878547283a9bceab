"""A published dataset of any size, made up: to measure on, where no crawl of that size is at hand.

    python benchmarks/explore_dataset.py [--entities 2000000 --images 10000000] [--units 100] [--seed 0] [--into DIR]

Written as `i2e run` publishes it (format 2: images by unit, entities, statistics, manifest), by the same writer. What
it has of a crawl:

    images per entity   Zipf-like: the first has a hundredth of all images, most have a few, each has one at least
    labels              1.1 an image; their scores, and the means of the entities, agree
    names               of one or two words; words are drawn by Zipf's law, so that many entities share a name
    texts               in eight scripts, with the words that proposed the label: the entity's name in the text's
                        script, which for some of them is one of its aliases
    urls                of some 50,000 domains, a few of which have most images
    pictures            320 real ones of 24 to 64 pixels (PNG, WebP, JPEG), 200 bytes each, followed by 16 random bytes,
                        which decoders pass over: no two images have the same bytes

Real images are some fifty times larger, so that a row group of 64 MB holds fewer of them: --row-group-mb 1 makes about
as many row groups as real images would. Equal options make equal files, and a folder that has them is left as it is.
10^7 images of 2 x 10^6 entities are 2.2 GB, and take 40 seconds on two cores.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from i2e_pipeline.core import files
from i2e_pipeline.core.config import StorageConfig
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.core.schemas import BUCKETS, ENTITY_DETAILS, ENTITY_STATISTICS, FUNNEL, I2E_ENTITIES, IMAGES
from i2e_pipeline.core.splits import TEST, TRAIN, held_out_entities
from i2e_pipeline.core.version import __version__
from i2e_pipeline.dataset.published import FORMAT_VERSION, manifest_of
from i2e_pipeline.engine.tasks import OpenFile, conform
from i2e_pipeline.publish.images import splits
from i2e_pipeline.publish.manifest import funnel_rows
from i2e_pipeline.publish.statistics import buckets

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

LABELS_PER_IMAGE = 1.1
MAX_LABELS_PER_IMAGE = 4
UNLABELLED = 0.1
"""Entities that a text proposed and no image shows, as a share of those with a class."""
PICTURES = 320
WORDS = 30_000
DOMAINS = 50_000
PHRASES = 2_000
_ROWS_PER_BATCH = 512
_VERSION = 1
"""Of what is made of equal options."""

SPELLINGS = {
    "latin": "ka lo mi ra ve su ti no be da gu sha po ne li ma zu ro he ya",
    "cyrillic": "ка ло ми ра ве су ти но бе да гу ша по не ли ма зу ро хе я",
    "greek": "κα λο μι ρα βε σου τι νο μπε ντα γκου σα πο νε λι μα ζου ρο χε για",
    "arabic": "كا لو مي را في سو تي نو بي دا غو شا بو ني لي ما زو رو هي يا",
    "devanagari": "का लो मि रा वे सु ति नो बे दा गु शा पो ने ली मा ज़ु रो हे या",
    "hangul": "카 로 미 라 베 수 티 노 베 다 구 샤 포 네 리 마 주 로 헤 야",
    "kana": "カ ロ ミ ラ ベ ス チ ノ ベ ダ グ シャ ポ ネ リ マ ズ ロ ヘ ヤ",
    "han": "卡 洛 米 拉 维 苏 提 诺 贝 达 古 沙 波 内 利 马 祖 罗 赫 亚",
}
"""The same syllables in each script: a word of one is a word of all."""
SYLLABLES = {script: spelling.split() for script, spelling in SPELLINGS.items()}
SCRIPTS = tuple(SYLLABLES)
SHARE_OF_SCRIPTS = (0.62, 0.12, 0.03, 0.06, 0.04, 0.03, 0.04, 0.06)
NO_SPACES = ("kana", "han")

CLASSES: tuple[tuple[str, str, str, float, str], ...] = (
    ("human", "human", "{profession} from {place}", 0.30, ""),
    ("settlement", "town", "town in {place}", 0.15, ""),
    ("taxon", "taxon", "species of {group}", 0.15, ""),
    ("building", "castle", "castle in {place}", 0.05, " Castle"),
    ("building", "bridge", "bridge in {place}", 0.03, " Bridge"),
    ("landform", "river", "river in {place}", 0.06, " River"),
    ("landform", "mountain", "mountain in {place}", 0.05, ""),
    ("artwork", "painting", "painting by {place}", 0.05, ""),
    ("work", "film", "film by {place}", 0.06, ""),
    ("team", "association football club", "football club in {place}", 0.04, " FC"),
    ("vehicle", "ship", "ship built in {place}", 0.03, ""),
    ("food", "dish", "dish from {place}", 0.03, ""),
)
"""Coarse type, class (P31), description, share of the entities, and what follows the name."""
PROFESSIONS = ("painter", "footballer", "politician", "singer", "actor", "writer", "physicist", "chemist", "swimmer")
GROUPS = ("beetle", "bird", "orchid", "fish", "fern", "mammal", "moss", "spider")


@dataclass(frozen=True)
class Vocabulary:
    """Strings that texts are put together from; taken by number."""

    words: pa.Array
    """script x WORDS, the scripts one after the other."""
    second: pa.Array
    """The same with what parts it from the word before; 0 of each script is the empty string."""
    phrases: pa.Array
    """script x PHRASES: what stands around a name."""
    domains: pa.Array
    pictures: pa.Array
    sides: I32
    """Width and height of each picture."""


@dataclass(frozen=True)
class Entities:
    """By entity, in the order of class_index; those without a class last."""

    entity_id: I64
    images: I64
    """How many show it; 0 of those without a class."""
    kind: I32
    """Place in CLASSES."""
    first: I32
    second: I32
    """Words of its name."""

    @property
    def classes(self) -> int:
        return int(np.count_nonzero(self.images))


def write_dataset(
    folder: Path | str,
    entities: int,
    images: int,
    units: int = 100,
    seed: int = 0,
    row_group_mb: int = 64,
    workers: int = 2,
) -> str:
    """Writes a whole dataset into `folder`, which must not hold one; returns the folder.

    entities    with a class; a tenth as many more are in the statistics, and have no image
    units       each has as many images as the others, or one less
    A folder that holds just this dataset is left as it is. Raises ValueError where the numbers do not go together,
    FileExistsError where there is something else in the folder.
    """
    place = Path(folder)
    identity = content_id(repr((_VERSION, entities, images, units, seed, row_group_mb)).encode()).hex()
    if not 1 <= entities <= images:
        raise ValueError(f"{entities:,} entities and {images:,} images: each entity has an image of its own at least")
    if not 1 <= units <= images:
        raise ValueError(f"{units:,} units and {images:,} images: each unit has an image at least")
    if place.exists() and any(place.iterdir()):
        if (place / "manifest.json").exists() and manifest_of(str(place)).get("dataset") == identity:
            return str(place)
        raise FileExistsError(f"{place} holds something else: remove it, or write the dataset elsewhere")
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 0])
    starts = np.arange(units + 1, dtype=np.int64) * images // units
    slots, offsets = _deal(images_per_entity(entities, images), images, rng)
    known, slots = _entities(slots, offsets, starts, entities, rng)
    vocabulary = _vocabulary(rng)
    storage = StorageConfig(row_group_mb=row_group_mb)
    names = [f"u-{content_id(b'%d unit %d' % (seed, unit)).hex()[:12]}" for unit in range(units)]

    def write_unit(unit: int) -> tuple[npt.NDArray[Any], ...]:
        """Labels of each entity, and the sums of their scores and CLIP scores."""
        start, stop = starts[unit], starts[unit + 1]
        of_unit = slots[offsets[start] : offsets[stop]]
        drawn = np.random.default_rng([seed, 1, unit])
        table, scores, clip_scores = _images(of_unit, np.diff(offsets[start : stop + 1]), known, vocabulary, drawn)
        _write(place / "images", names[unit], table, IMAGES, storage)
        return tuple(np.bincount(of_unit, weights, minlength=entities) for weights in (None, scores, clip_scores))

    with ThreadPoolExecutor(workers) as pool:
        count, score, clip_score = reduce(_sums, pool.map(write_unit, range(units)))
    told = _told(known, vocabulary, score / count, clip_score / count, rng)
    _write(place / "statistics" / "entities", "all", told, ENTITY_STATISTICS, storage)
    _write(place / "entities", "all", _as_classes(told.slice(0, entities)), I2E_ENTITIES, storage)
    by_images = dict(zip(*(v.tolist() for v in np.unique(count, return_counts=True)), strict=True))
    _write(place / "statistics" / "buckets", "all", pa.table(buckets(by_images)), BUCKETS, storage)
    facts = _manifest(dict(zip(names, np.diff(starts).tolist(), strict=True)), entities, len(slots), identity)
    _write(place / "statistics" / "funnel", "all", pa.table(funnel_rows(facts["funnel"])), FUNNEL, storage)
    files.write_json(str(place / "manifest.json"), facts)
    return str(place)


def _sums(these: tuple[npt.NDArray[Any], ...], those: tuple[npt.NDArray[Any], ...]) -> tuple[npt.NDArray[Any], ...]:
    return tuple(this + that for this, that in zip(these, those, strict=True))


def images_per_entity(entities: int, images: int) -> I64:
    """How many labels each entity has, falling: head / rank^a, 1 at least, with the a that makes 1.1 labels an image.

    head   a hundredth of the images, or as many as it takes
    """
    labels = max(entities, int(images * LABELS_PER_IMAGE))
    head = max(images // 100, -(-labels // entities))
    rank = np.arange(1, entities + 1, dtype=np.float64)
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _zipf(rank, head, middle).sum() > labels else (low, middle)
    counts = _zipf(rank, head, high)
    counts[: labels - counts.sum()] += 1
    return np.minimum(counts, images)


def _zipf(rank: npt.NDArray[np.float64], head: int, exponent: float) -> I64:
    return np.maximum(1, np.floor(head * rank**-exponent)).astype(np.int64)


def _deal(counts: I64, images: int, rng: np.random.Generator) -> tuple[I32, I64]:
    """Deals labels to images: the ranks of the entities that each image shows, image after image, and where each
    image's begin (images + 1 numbers). Each image has one at least, MAX_LABELS_PER_IMAGE at most, and none twice."""
    ranks = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    rng.shuffle(ranks)
    of_image = np.empty(len(ranks), dtype=np.int64)
    of_image[:images] = np.arange(images)
    again = np.arange(images, len(ranks))
    while len(again):
        of_image[again] = rng.integers(images, size=len(again))
        key = of_image * len(counts) + ranks
        order = np.argsort(key, kind="stable")  # of equal ones, the first dealt stays
        twice = np.zeros(len(ranks), dtype=bool)
        twice[order[1:]] = key[order[1:]] == key[order[:-1]]
        full = np.bincount(of_image, minlength=images) > MAX_LABELS_PER_IMAGE
        again = np.flatnonzero(twice | full[of_image])
        again = again[again >= images]
    offsets = np.zeros(images + 1, dtype=np.int64)
    np.cumsum(np.bincount(of_image, minlength=images), out=offsets[1:])
    return ranks[np.argsort(of_image, kind="stable")], offsets


def _entities(ranks: I32, offsets: I64, starts: I64, entities: int, rng: np.random.Generator) -> tuple[Entities, I32]:
    """The entities, and the class index of each label. Classes are numbered as `select` does it: by the first unit that
    has a label of theirs, then by id."""
    total = entities + int(entities * UNLABELLED)
    ids = np.empty(0, dtype=np.int64)
    while len(ids) < total:
        ids = np.unique(np.concatenate([ids, rng.integers(1, 64 * total + 1, size=total - len(ids))]))
    # What many images show has been known for longer, and has a small number.
    ids = ids[np.argsort(np.arange(total) * rng.lognormal(0, 1, total), kind="stable").argsort()]
    first_unit = np.full(entities, len(starts))
    unit_of_label = np.searchsorted(starts, np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), side="right") - 1
    first_unit[ranks[::-1]] = unit_of_label[::-1]
    order = np.lexsort([ids[:entities], first_unit])
    class_index = np.empty(entities, dtype=np.int32)
    class_index[order] = np.arange(entities, dtype=np.int32)
    images = np.zeros(total, dtype=np.int64)
    images[:entities] = np.bincount(ranks, minlength=entities)[order]
    of_class = np.concatenate([ids[:entities][order], np.sort(ids[entities:])])
    kinds = rng.choice(len(CLASSES), total, p=np.array([c[3] for c in CLASSES])).astype(np.int32)
    two_words = rng.random(total) < np.where(np.isin(kinds, [0, 2]), 1.0, 0.3)
    first, second = (_by_zipf(WORDS, 0.7, total, rng) for _ in range(2))
    return Entities(of_class, images, kinds, first, np.where(two_words, np.maximum(second, 1), 0)), class_index[ranks]


def _by_zipf(things: int, exponent: float, draws: int, rng: np.random.Generator) -> I32:
    weights = np.cumsum(np.arange(1, things + 1, dtype=np.float64) ** -exponent)
    return np.searchsorted(weights, rng.random(draws) * weights[-1]).clip(max=things - 1).astype(np.int32)


def _vocabulary(rng: np.random.Generator) -> Vocabulary:
    count = len(SYLLABLES["latin"])
    codes = np.unique(rng.integers(count**2, count**4, size=2 * WORDS))
    codes = rng.permutation(codes)[:WORDS].tolist()
    spelled = [[c // count**p % count for p in (3, 2, 1, 0) if c >= count**p] for c in codes]
    words, second, phrases = [], [], []
    for script, syllables in SYLLABLES.items():
        said = ["".join(syllables[s] for s in word) for word in spelled]
        space = "" if script in NO_SPACES else " "
        places = rng.integers(WORDS, size=(PHRASES, 3))
        lengths = rng.integers(4, size=PHRASES)
        phrases += [space.join(said[w] for w in p[:n]) for p, n in zip(places.tolist(), lengths.tolist(), strict=True)]
        names = [word.capitalize() for word in said]
        words += names
        second += ["", *((space or "・") + name for name in names[1:])]
    latin = words[:WORDS]
    endings = ("com", "org", "net", "de", "ru", "fr", "co.uk", "in", "jp", "kr", "gr", "cn", "com.br", "it")
    domains = [f"{latin[i % WORDS].lower()}{i // WORDS or ''}.{endings[i % len(endings)]}" for i in range(DOMAINS)]
    pictures = [picture(n, rng) for n in range(PICTURES)]
    return Vocabulary(
        pa.array(words),
        pa.array(second),
        pa.array(phrases),
        pa.array(domains),
        pa.array([stored for stored, _ in pictures], pa.binary()),
        np.array([side for _, side in pictures], dtype=np.int32),
    )


def picture(number: int, rng: np.random.Generator) -> tuple[bytes, tuple[int, int]]:
    """A stored image, and its width and height: a shape on a ground."""
    width, height = (int(s) for s in rng.integers(24, 65, size=2))
    ground, ink = (tuple(int(c) for c in rng.integers(256, size=3)) for _ in range(2))
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    box = (width // 5, height // 5, width * 4 // 5, height * 4 // 5)
    (draw.ellipse, draw.rectangle)[number % 2](box, fill=ink)
    form = ("PNG", "WEBP", "JPEG", "WEBP")[number % 4]
    content = io.BytesIO()
    image = image.quantize(4) if form == "PNG" else image
    image.save(content, form, quality=10, optimize=True)
    return content.getvalue(), (width, height)


def _images(
    classes: I32, labels: I64, known: Entities, vocabulary: Vocabulary, rng: np.random.Generator
) -> tuple[pa.Table, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Rows of i2e/images of a unit, and score and CLIP score of each label.

    classes   of each label, image after image
    labels    how many each image has
    """
    rows, words = len(labels), len(classes)
    script = rng.choice(len(SCRIPTS), rows, p=np.array(SHARE_OF_SCRIPTS)).astype(np.int32)
    offsets = pa.array(np.concatenate([[0], np.cumsum(labels)]), pa.int32())
    mentions = _names(known, classes, np.repeat(script, labels), vocabulary)
    score = (1 - 0.36 * rng.beta(0.6, 2.5, words)).astype(np.float32)
    clip_score = rng.normal(0.28, 0.04, words).astype(np.float32)
    struct = [pa.array(known.entity_id[classes]), pa.array(classes), pa.array(score), pa.array(clip_score), mentions]
    told = IMAGES.field("labels").type
    label_lists = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(struct, fields=list(told.value_type)))
    named = pc.binary_join(pa.ListArray.from_arrays(offsets, mentions), " + ")
    before, after = (vocabulary.phrases.take(pa.array(script * PHRASES + _phrase(rows, rng))) for _ in range(2))
    alt_text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(before, named, after, " "))
    shown = rng.integers(PICTURES, size=rows)
    tails = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(rng.bytes(16 * rows))])
    stored = pc.binary_join_element_wise(vocabulary.pictures.take(pa.array(shown)), tails.cast(pa.binary()), b"")
    image = pa.StructArray.from_arrays([stored, pa.nulls(rows, pa.string())], fields=list(IMAGES.field("image").type))
    number = pa.array(rng.integers(10**9, size=rows)).cast(pa.string())
    domain = vocabulary.domains.take(pa.array(_by_zipf(DOMAINS, 0.9, rows, rng)))
    url = pc.binary_join_element_wise(pc.binary_join_element_wise("https://", domain, ""), "img", number, "/")
    image_id = _hex(rng, rows, 16, in_order=True)
    width, height = vocabulary.sides[shown].T
    table = pa.table(
        {
            "image_id": image_id,
            "image": image,
            "url": pc.binary_join_element_wise(url, ".jpg", ""),
            "alt_text": alt_text,
            "width": width,
            "height": height,
            "key": number,
            "pair_id": _hex(rng, rows, 16),
            "perceptual_hash": _hex(rng, rows, 32),
            "split": splits(image_id, label_lists),
            "labels": label_lists,
        }
    )
    return table, score, clip_score


def _phrase(rows: int, rng: np.random.Generator) -> I32:
    return rng.integers(PHRASES, size=rows, dtype=np.int32)


def _names(known: Entities, of: npt.NDArray[Any], script: npt.NDArray[Any] | int, vocabulary: Vocabulary) -> pa.Array:
    """Names of entities, each in its script (place in SCRIPTS), without what follows a name."""
    parts = [
        words.take(pa.array(script * WORDS + numbers[of]))
        for words, numbers in ((vocabulary.words, known.first), (vocabulary.second, known.second))
    ]
    return pc.binary_join_element_wise(*parts, "")


def _hex(rng: np.random.Generator, rows: int, size: int, in_order: bool = False) -> pa.Array:
    """Random ids of `size` bytes in hex digits."""
    drawn = np.frombuffer(rng.bytes(rows * size), dtype=np.uint8).reshape(rows, size)
    if in_order:
        drawn = drawn[np.argsort(drawn[:, :8].copy().view(">u8")[:, 0], kind="stable")]
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = np.empty((rows, 2 * size), dtype=np.uint8)
    text[:, 0::2], text[:, 1::2] = digits[drawn >> 4], digits[drawn & 15]
    offsets = np.arange(rows + 1, dtype=np.int32) * (2 * size)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets.tobytes()), pa.py_buffer(text.tobytes()))


def _told(
    known: Entities,
    vocabulary: Vocabulary,
    score: npt.NDArray[np.float64],
    clip_score: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> pa.Table:
    """Rows of i2e/statistics/entities, by class index, those without a class last."""
    total, classes = len(known.entity_id), known.classes
    every = np.arange(total)
    kind = pa.array(known.kind)
    latin = _names(known, every, 0, vocabulary)
    name = pc.binary_join_element_wise(latin, pa.array([c[4] for c in CLASSES]).take(kind), "")
    place = vocabulary.words.take(pa.array(_by_zipf(WORDS, 0.9, total, rng)))
    description = pa.array([c[2] for c in CLASSES]).take(kind)
    said = {"{place}": place} | {
        hole: pa.array(words).take(pa.array(rng.integers(len(words), size=total)))
        for hole, words in (("{profession}", PROFESSIONS), ("{group}", GROUPS))
    }
    for hole, values in said.items():
        around = pc.split_pattern(description, hole)
        holds = pc.equal(pc.list_value_length(around), 2)
        # Only those with a hole have a second part: others get it from a list that is padded for it.
        before = pc.list_element(around, 0)
        after = pc.list_element(pc.list_slice(around, 0, 2, return_fixed_size_list=True), 1)
        filled = pc.binary_join_element_wise(before, values, pc.fill_null(after, ""), "")
        description = pc.if_else(holds, filled, description)
    # Its name in other scripts: most have one or two, and what many images show has all.
    share = 0.15 + 0.12 * np.log1p(known.images)
    of_alias, script = np.nonzero(rng.random((total, len(SCRIPTS) - 1)) < share[:, None])
    ends = np.cumsum(np.bincount(of_alias, minlength=total))
    aliases = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]), pa.int32()), _names(known, of_alias, script + 1, vocabulary)
    )
    labelled = (known.images * (1 + rng.exponential(0.05, total))).astype(np.int64)
    proposed = (labelled + 1) + (labelled * rng.exponential(0.6, total)).astype(np.int64)
    fame = np.log1p(known.images) * 4 * rng.lognormal(0, 0.7, total)
    sitelinks = fame.astype(np.int32).clip(0, 350)
    human = pa.array(known.kind == 0)
    with_class = known.images > 0
    title = pc.if_else(pa.array(sitelinks > 0), name, pa.scalar(None, pa.string()))

    def of_classes(values: npt.NDArray[np.float64]) -> pa.Array:
        return pa.array(np.concatenate([values, np.zeros(total - classes)]), pa.float32(), mask=~with_class)

    mean_clip = np.concatenate([clip_score, np.full(total - classes, 0.2)])
    return pa.table(
        {
            "entity_id": known.entity_id,
            "class_index": pa.array(every.astype(np.int32), mask=~with_class),
            "name": name,
            "description": description,
            "aliases": aliases,
            "images": known.images,
            "pairs_proposed": proposed,
            "pairs_labelled": labelled,
            "mean_clip_score": pa.array(mean_clip - 0.01, pa.float32()),
            "mean_clip_score_labelled": of_classes(clip_score),
            "mean_probability": of_classes(score),
            "types": pa.array([[c[1]] for c in CLASSES]).take(kind),
            "coarse_type": pa.array([c[0] for c in CLASSES]).take(kind),
            "sitelinks": sitelinks,
            "popularity": np.round(fame**2),
            "is_human": human,
            "wikipedia_title": title,
            "retired": np.zeros(total, dtype=bool),
            **{field.name: pa.nulls(total, field.type) for field in ENTITY_DETAILS},
        }
    )


def _as_classes(told: pa.Table) -> pa.Table:
    """Rows of i2e/entities."""
    held_out = held_out_entities(told.column("entity_id").to_numpy())
    told = told.drop_columns(["mean_clip_score"]).append_column("split", pa.array(np.where(held_out, TEST, TRAIN)))
    names = ["mean_clip_score" if n == "mean_clip_score_labelled" else n for n in told.column_names]
    return told.rename_columns(names).select(I2E_ENTITIES.names)


def _write(table: Path, unit: str, rows: pa.Table, schema: pa.Schema, storage: StorageConfig) -> None:
    """A file of a table, with the row groups that a run's have."""
    file = OpenFile(str(table), f"unit={unit}/part-00000-0-made.parquet", schema, storage)
    for batch in _batches(rows):
        file.add(conform(batch, schema, table.name))
    file.close()


def _batches(rows: pa.Table) -> Iterator[pa.RecordBatch]:
    yield from rows.combine_chunks().to_batches(max_chunksize=_ROWS_PER_BATCH)


def _manifest(units: dict[str, int], entities: int, labels: int, identity: str) -> dict[str, Any]:
    images = sum(units.values())
    steps = []
    rows = images * 7
    for stage, rows_are, kept, reasons in (
        ("pairs", "pairs", 0.99, ("empty_text", "null_text")),
        ("extract", "texts", 0.6, ("no_mention",)),
        ("link", "mentions", 0.8, ("no_candidate",)),
        ("score", "pairs", 0.5, ("no_linked_mention", "not_an_image")),
        ("label", "pairs", 0.3, ("below_bar",)),
        ("select", "pairs", 0.0, ("duplicate_image", "rare_entity")),
    ):
        out = images if stage == "select" else max(images, int(rows * kept))
        lost = rows - out
        rejected = {reason: lost // len(reasons) for reason in reasons[1:]}
        rejected = {reasons[0]: lost - sum(rejected.values())} | rejected
        steps.append({"stage": stage, "rows_are": rows_are, "rows_in": rows, "rows_out": out, "rejected": rejected})
        rows = out
    return {
        "format_version": FORMAT_VERSION,
        "images": images,
        "labels": labels,
        "entities": entities,
        "units": units,
        "columns": IMAGES.names,
        "storage": "parquet",
        "model": {"model": "none, the dataset is made up"},
        "labels_chosen_by": {"bar": 0.64, "max_labels_per_image": MAX_LABELS_PER_IMAGE},
        "thresholds": {
            "link": {},
            "build": {"bar": 0.64, "max_labels_per_image": MAX_LABELS_PER_IMAGE, "min_images_per_entity": 1},
        },
        "settings": {},
        "fingerprints": {},
        "dataset": identity,
        "knowledge_base": {
            "stage": "knowledge_base",
            "rows_are": "dump lines",
            "rows_in": 0,
            "rows_out": 0,
            "rejected": {},
        },
        "funnel": steps,
        "software": {"i2e_pipeline": __version__},
    }


def main(arguments: list[str]) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row-group-mb", type=int, default=64, help="before compression")
    parser.add_argument("--into", type=Path, default=Path("out/benchmarks/explore/i2e"), metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        folder = write_dataset(
            options.into, options.entities, options.images, options.units, options.seed, options.row_group_mb
        )
    except (ValueError, FileExistsError) as error:
        sys.exit(f"explore_dataset.py: {error}")
    size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
    print(f"{options.images:,} images of {options.entities:,} entities, {size / 1e9:.2f} GB: {folder}")
    return folder


if __name__ == "__main__":
    main(sys.argv[1:])
