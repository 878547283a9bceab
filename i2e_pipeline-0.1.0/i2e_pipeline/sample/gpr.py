"""A small GPR1200 of the sample world:  python -m i2e_pipeline.sample.gpr --output out/sample/gpr

    images/CATEGORY_NUMBER.jpg|png|webp   a category per drawn thing, ten scenes each, by GPR1200's naming
    domains.json                          names and domains of the categories
    manifest.json                         written last

The scenes are draws that nothing is trained or tuned on. Four in ten are in the art style that the scorer never saw in
training.
The same arguments give the same bytes. The folder appears at once, when complete; a second call does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from i2e_pipeline.core import files
from i2e_pipeline.sample.art import load_art
from i2e_pipeline.sample.captions import Caption
from i2e_pipeline.sample.draws import Draw, picture
from i2e_pipeline.sample.world import ART, HELD_OUT_STYLE, HERE, Entity, load_world

SEED = 1200
PER_DOMAIN = 20
"""Categories of a domain at most: the world draws 72 flags and 11 things in space."""
IMAGES = 10
HELD_OUT_IMAGES = 4
"""How many of ten scenes of a thing are in the held-out art style, where the thing is drawn in it."""
DOMAINS = {
    "places": ("LOC",), "animals": ("ANIMAL",), "food and plants": ("FOOD", "PLANT"), "things": ("THING",),
    "space": ("SPACE",), "sports": ("SPORT",),
}  # fmt: skip
"""Domain: kinds of the world's entities. Six, as in GPR1200."""


def categories(per_domain: int = PER_DOMAIN) -> list[tuple[str, Entity]]:
    """(domain, entity) by category number. Of a domain with more things, those with the lowest hashes."""
    kind = {kind: domain for domain, kinds in DOMAINS.items() for kind in kinds}
    by_domain: defaultdict[str, list[Entity]] = defaultdict(list)
    for entity in load_world().depicted:
        by_domain[kind[entity.kind]].append(entity)
    return [
        (domain, entity)
        for domain in DOMAINS
        for entity in sorted(by_domain[domain], key=lambda e: hashlib.sha256(f"{SEED}/{e.id}".encode()).digest())[
            :per_domain
        ]
    ]


def scene(entity: Entity, number: int) -> Draw:
    """What the image of that number in the entity's category shows."""
    art = load_art()
    name = f"{SEED}/gpr/{entity.id}/{number}"
    rng = random.Random(name)
    styles = art.styles(entity.id, training=False)
    others = [style for style in styles if style != HELD_OUT_STYLE]
    held_out = HELD_OUT_STYLE in styles and number % 10 < HELD_OUT_IMAGES
    style = HELD_OUT_STYLE if held_out or not others else rng.choice(others)
    variant = rng.choice(art.variants(style, entity.id, training=False))
    return Draw(name, entity, style, variant, Caption("", (), (), False))


def _write(folder: Path, category: int, entity: Entity, images: int) -> None:
    for number in range(images):
        data, extension, _, _ = picture(scene(entity, number))
        (folder / f"{category}_{number:02d}.{extension}").write_bytes(data)


def _write_some(folder: Path, part: list[tuple[int, Entity]], images: int) -> None:
    for category, entity in part:
        _write(folder, category, entity, images)


def fingerprint(per_domain: int, images: int) -> str:
    """A digest of everything that the output depends on: arguments, world, drawings, these scripts."""
    digest = hashlib.sha256(json.dumps([per_domain, images, SEED]).encode())
    scripts = [HERE / f"{name}.py" for name in ("art", "draws", "gpr", "scene", "world")]
    world = [HERE / "world" / "depicted.jsonl", *sorted(ART.glob("*.webp")), ART / "index.json"]
    for path in [*scripts, *world]:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def compose_gpr(folder: Path, per_domain: int = PER_DOMAIN, images: int = IMAGES, processes: int = 2) -> bool:
    """Write the folder. False where it was already there with the same content."""
    chosen = categories(per_domain)
    mark = {
        "fingerprint": fingerprint(per_domain, images),
        "categories": len(chosen),
        "images": len(chosen) * images,
    }
    manifest = folder / "manifest.json"
    if manifest.exists() and json.loads(manifest.read_text()) == mark:
        return False
    if folder.exists() and not manifest.exists() and any(folder.iterdir()):
        raise SystemExit(
            f"gpr: {folder} is no composed benchmark (it has no manifest.json): use another --output, or remove it."
        )
    with files.fresh_folder(folder) as work:
        (work / "images").mkdir()
        numbered = [(number, entity) for number, (_, entity) in enumerate(chosen)]
        parts = [numbered[i :: max(1, processes)] for i in range(max(1, processes))]
        if processes > 1:
            # spawn: the caller may hold threads (torch) that do not survive a fork
            with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
                for job in [pool.submit(_write_some, work / "images", part, images) for part in parts]:
                    job.result()
        else:
            _write_some(work / "images", numbered, images)
        about = {
            "names": {str(number): entity.label for number, (_, entity) in enumerate(chosen)},
            "descriptions": {str(number): entity.description for number, (_, entity) in enumerate(chosen)},
            "domains": {str(number): domain for number, (domain, _) in enumerate(chosen)},
        }
        (work / "domains.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (work / "manifest.json").write_text(json.dumps(mark, indent=1) + "\n")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Compose a small GPR1200 of the sample world.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--per-domain", type=int, default=PER_DOMAIN, help="categories of a domain at most")
    parser.add_argument("--images", type=int, default=IMAGES, help="scenes per category")
    parser.add_argument("--processes", type=int, default=2)
    a = parser.parse_args()
    fresh = compose_gpr(a.output, a.per_domain, a.images, a.processes)
    print(f"mini GPR1200 {'written to' if fresh else 'already in'} {a.output}")


if __name__ == "__main__":
    main()
