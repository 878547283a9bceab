"""Each hook of the policy in the chain: people, heads on stored vectors and on another model's, domains."""

from __future__ import annotations

import bz2
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from i2e_pipeline import cli
from i2e_pipeline.clean import heads
from i2e_pipeline.clean.heads import About, Head, HeadError
from i2e_pipeline.clean.policy import LOOKED_AT
from i2e_pipeline.commands.explain import explain
from i2e_pipeline.core.config import Config, ScoreConfig
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.images.decode import Rejected, open_rgb
from i2e_pipeline.images.encoder import load
from i2e_pipeline.sample.train_heads import FLAGS
from i2e_pipeline.sample.world import load_world
from i2e_pipeline.stages import pipeline
from tests.chain import content, explained_as_stored, run, settings
from tests.clean.test_stages import rejected, told
from tests.engine.toys import worked
from tests.small_models import write_model

pytestmark = pytest.mark.slow


def labels_of(output: Path | str) -> Counter[int]:
    """Published labels by entity."""
    return Counter(entity for *_, labels in content(output)[0].values() for entity, _, _ in labels)


@pytest.fixture(scope="session")
def peopled(world: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The world, in whose dump the entity of the most images is a human."""
    folder = tmp_path_factory.mktemp("peopled")
    for name in ("pairs", "popularity.csv", "anchors.tsv"):
        (folder / name).symlink_to(world / name)
    ((human, images),) = labels_of(whole).most_common(1)
    assert images > 1
    lines = bz2.decompress((world / "dump.json.bz2").read_bytes()).decode().splitlines()
    for n, line in enumerate(lines):
        if line.startswith(f'{{"type":"item","id":"Q{human}"') or f'"id":"Q{human}"' in line[:200]:
            entity = json.loads(line.rstrip(","))
            if entity["id"] == f"Q{human}":
                (claim, *_) = entity["claims"]["P31"]
                claim["mainsnak"]["datavalue"]["value"] |= {"id": "Q5", "numeric-id": 5}
                lines[n] = json.dumps(entity) + ","
    (folder / "dump.json.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
    return folder, human


def test_labels_of_people_go_and_with_them_images_that_show_nothing_else(
    peopled: tuple[Path, int], tmp_path: Path, spark: Any
) -> None:
    world, human = peopled
    run(settings(world, tmp_path / "out"), spark)
    before, entities = content(tmp_path / "out")
    assert entities[human]["is_human"]
    config = settings(world, tmp_path / "out", "clean.people=drop_labels")
    _, states = pipeline(config, lambda: spark).run()
    done = {stage for stage, units in worked(states).items() if units}
    assert done == {"people", "select", "publish", "finish"}
    after, entities = content(tmp_path / "out")
    assert human not in entities
    kept = {image: labels for image, (*_, labels) in after.items()}
    expected = {image: [label for label in labels if label[0] != human] for image, (*_, labels) in before.items()}
    assert kept == {image: labels for image, labels in expected.items() if labels}
    rows = rejected(config.output, "people")
    assert {row["reason"] for row in rows} == {"person_entity"}
    assert {row["detail"] for row in rows} == {f"Q{human}"}
    assert told(config, "people")["labels of people"] >= len(rows) > 0
    steps = {step["stage"]: step for step in json.loads(Path(config.output, "i2e/manifest.json").read_text())["funnel"]}
    assert steps["people"]["rows_out"] == steps["select"]["rows_in"]
    explained_as_stored(pipeline(config, lambda: spark))


def test_a_head_reads_stored_vectors_and_opens_no_image(world: Path, whole: Path, tmp_path: Path, spark: Any) -> None:
    head = f"clean.heads=[{{reason: unwanted, head: {FLAGS}}}]"
    config = settings(world, tmp_path / "out", head)
    run(config, spark)
    flags = {int(e.id[1:]) for e in load_world().depicted if e.art.startswith("flag:")}
    before, after = labels_of(whole), labels_of(config.output)
    shown = sum(count for entity, count in before.items() if entity in flags)
    assert shown > 20
    assert sum(count for entity, count in after.items() if entity in flags) < 0.35 * shown
    others = sum(before.values()) - shown
    assert sum(count for entity, count in after.items() if entity not in flags) > 0.9 * others
    rows = rejected(config.output, "policy")
    assert {row["reason"] for row in rows} == {"unwanted"}
    assert all(row["detail"].startswith("flags.safetensors gives 0.") or " 1.000" in row["detail"] for row in rows)
    assert images_encoded(config) == 0

    # Another threshold: scores stay. A head that fits no vectors is refused before anything is made again.
    highest = head.replace("}]", ", threshold: 1}]")
    _, states = pipeline(settings(world, tmp_path / "out", highest), lambda: spark).run()
    assert {s for s, units in worked(states).items() if units} == {"policy", "select", "publish", "finish"}
    sure = {image for image, vector in stored_vectors(whole).items() if heads.read(str(FLAGS))(vector[None])[0] >= 1}
    assert content(tmp_path / "out")[0].keys() == content(whole)[0].keys() - sure
    heads.write(str(tmp_path / "odd.safetensors"), Head(About("w", "other", "abc", 128, 0.5), one_layer(128)))
    odd = settings(world, tmp_path / "out", f"clean.heads=[{{reason: watermark, head: {tmp_path}/odd.safetensors}}]")
    with pytest.raises(HeadError, match=r"odd\.safetensors reads vectors of other .*clean\.heads\.0\.model to"):
        pipeline(odd, lambda: spark).run()


def one_layer(width: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    weight = np.random.default_rng(seed).normal(size=(1, width)).astype(np.float32)
    return [(weight, np.zeros(1, np.float32))]


def images_encoded(config: Config) -> int:
    """Images that the stage's kernels opened."""
    made = Tables(config.output).commits("policy").values()
    return sum(commit.facts.get("notes", {}).get(LOOKED_AT, 0) for commit in made)


def stored_vectors(output: Path | str) -> dict[str, np.ndarray]:
    """By image id."""
    rows = ds.dataset(f"{output}/image_vectors", format="parquet").to_table(["image_id", "vector"]).to_pylist()
    return {row["image_id"].hex(): np.frombuffer(row["vector"], "<f2") for row in rows}


def head_of_people(vectors: dict[str, np.ndarray], folder: Path) -> str:
    """A head that `i2e head train` fits to a world's vectors and what lies near each: the world has no photos of
    people, so people are what lies on one side of a plane."""
    draw = np.random.default_rng(0)
    plane = draw.normal(size=len(next(iter(vectors.values()))))
    rows = []
    for image, vector in vectors.items():
        for n in range(12):
            near = vector + (n > 0) * draw.normal(scale=0.5 / np.sqrt(len(vector)), size=len(vector))
            name = image if n == 0 else hashlib.blake2b(f"{image} {n}".encode(), digest_size=16).hexdigest()
            rows.append((name, (near / np.linalg.norm(near)).astype(np.float16)))
    side = np.array([float(vector @ plane) for _, vector in rows])
    found = side > np.quantile(side, 0.6)
    lines = [f"{name},{int(is_one)}" for (name, _), is_one in zip(rows, found, strict=True)]
    (folder / "people.csv").write_text("\n".join(["image_id,found", *lines]))
    table = pa.table({"image_id": [name for name, _ in rows], "vector": [vector.tobytes() for _, vector in rows]})
    pq.write_table(table, folder / "people.parquet")
    asked = ["--labels", "people.csv", "--vectors", "people.parquet", "--write", "people.safetensors"]
    named = [one if one.startswith("--") else str(folder / one) for one in asked]
    with pytest.raises(SystemExit) as ended:
        cli.main(["head", "train", "--finds", "people", "--precision", "0.8", *named])
    assert not ended.value.code
    return str(folder / "people.safetensors")


def test_photos_of_people_are_left_out_and_all_that_tells_of_rows_says_so(
    world: Path, whole: Path, tmp_path: Path, spark: Any
) -> None:
    vectors = stored_vectors(whole)
    path = head_of_people(vectors, tmp_path)
    head = heads.read(path)
    people = {image for image, vector in vectors.items() if head(vector[None])[0] >= head.about.threshold}
    shutil.copytree(whole, tmp_path / "out")
    of_people = f"clean={{people: drop_photos, heads: [{{reason: person_photo, head: {path}}}]}}"
    config = settings(world, tmp_path / "out", of_people)
    made = pipeline(config, lambda: spark)
    _, states = made.run()
    assert {s for s, units in worked(states).items() if units} == {"policy", "select", "publish", "finish"}
    before, after = content(whole)[0], content(config.output)[0]
    assert after.keys() == before.keys() - people
    assert 10 < len(after) < len(before) - 10
    rows = rejected(config.output, "policy")
    assert {row["reason"] for row in rows} == {"person_photo"}

    funnel = json.loads(Path(config.output, "i2e/manifest.json").read_text())["funnel"]
    (step,) = [step for step in funnel if step["stage"] == "policy"]
    assert step["rejected"] == {"person_photo": len(rows)}
    assert step["rows_in"] == step["rows_out"] + len(rows)
    (line,) = [s for s in Path(config.output, "i2e/README.md").read_text().splitlines() if s.startswith("| policy |")]
    assert f"person_photo {len(rows)}" in line

    labels = ds.dataset(f"{config.output}/labels", format="parquet").to_table(["pair_id", "image_id"]).to_pylist()
    of_pair = {row["pair_id"]: row["image_id"].hex() for row in labels}
    assert {of_pair[row["id"]] for row in rows} <= people
    gone = explain(made, of_pair[rows[0]["id"]])
    assert not gone["image"]["published"]
    (pair,) = [pair for pair in gone["pairs"] if pair["pair_id"] == rows[0]["id"].hex()]
    assert pair["ended"] == "policy: person_photo"
    (said,) = [said for said in pair["steps"] if said["stage"] == "policy"]
    assert "finds people on the image" in said["sentence"]
    (number,) = head(vectors[of_pair[rows[0]["id"]]][None])
    assert said["detail"] == f"people.safetensors gives {number:.5f}, bar {head.about.threshold:g}"
    assert explain(made, sorted(after)[0])["image"]["published"]


def test_a_head_on_another_model_and_a_function_look_at_the_images(
    world: Path, whole: Path, tmp_path: Path, spark: Any
) -> None:
    """Vectors of a model that is not the scorer's are made of the images, for all units of a task; a function of
    somebody's own stands beside."""
    other = write_model(tmp_path / "other", "vit")
    model = ScoreConfig(model=other, device="cpu")
    encoder = load(model)
    path = str(tmp_path / "ugly.safetensors")
    about = About("beauty", "other", heads.vectors_of(model), encoder.width, 0.0, drops="below", output="number")
    head = Head(about, one_layer(encoder.width))
    stored = {}
    for file in sorted((world / "pairs").glob("*.parquet")):
        for image in pq.read_table(file, columns=["jpg"])["jpg"].to_pylist():
            opened = open_rgb(image, model)
            if not isinstance(opened, Rejected):
                stored[content_id(image)] = encoder.prepare(opened[0])
    vectors = encoder.images(np.stack(list(stored.values()))).astype(np.float16)
    beauty = dict(zip(stored, head(vectors).tolist(), strict=True))
    first = dict(zip(stored, vectors[:, 0].astype(float).tolist(), strict=True))
    bars = float(np.median(list(beauty.values()))), float(np.quantile(list(first.values()), 0.7))
    heads.write(path, head)
    (tmp_path / "policy_of_mine.py").write_text("def first(vectors):\n    return vectors[:, 0]\n")
    both = (
        f"clean.heads=[{{reason: low_aesthetic, head: {path}, model: '{other}', threshold: {bars[0]}}}, "
        f"{{reason: unsafe, head: '{tmp_path}/policy_of_mine.py:first', model: '{other}', threshold: {bars[1]}}}]"
    )
    config = settings(world, tmp_path / "out", both)
    run(config, spark)
    before, after = (ds.dataset(f"{o}/labels", format="parquet").to_table() for o in (whole, config.output))
    assert before.num_rows == after.num_rows
    labelled = {row["pair_id"]: row["image_id"] for row in after.to_pylist() if row["reason"] is None}
    expected = {
        pair: "low_aesthetic" if beauty[image] < bars[0] else "unsafe" if first[image] >= bars[1] else None
        for pair, image in labelled.items()
    }
    assert len(Counter(expected.values())) == 3
    rows = {row["id"]: row["reason"] for row in rejected(config.output, "policy")}
    assert rows == {pair: reason for pair, reason in expected.items() if reason}
    kept = {row["pair_id"] for row in ds.dataset(f"{config.output}/permitted", format="parquet").to_table().to_pylist()}
    assert kept == {pair for pair, reason in expected.items() if reason is None}
    assert images_encoded(config) == len(labelled)


def test_only_some_domains(world: Path, whole: Path, tmp_path: Path, spark: Any) -> None:
    before = content(whole)[0]
    hosts = Counter(urlsplit(url).hostname for _, _, url, *_ in before.values())
    some = sorted(str(host) for host in hosts)[::2]
    config = settings(world, tmp_path / "out", f"clean.only_domains=[{', '.join(some)}]")
    run(config, spark)
    after = content(config.output)[0]
    assert {urlsplit(url).hostname for _, _, url, *_ in after.values()} == set(some)
    assert {row["reason"] for row in rejected(config.output, "policy")} == {"other_domain"}
    # A list of what is left out is `select.exclude`, with a reason of its own.
    (tmp_path / "domains.txt").write_text("\n".join(some))
    run(settings(world, tmp_path / "out", f"select.exclude={tmp_path}/domains.txt"), spark)
    rest = content(config.output)[0]
    assert not {urlsplit(url).hostname for _, _, url, *_ in rest.values()} & set(some)
    assert "excluded_domain" in {row["reason"] for row in rejected(config.output, "select")}
