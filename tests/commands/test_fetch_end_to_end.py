"""`i2e fetch` with img2dataset itself: what it leaves makes the same dataset, other sizes, and kills."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from i2e_pipeline.commands.fetching import worker
from i2e_pipeline.commands.fetching.environment import FetchError
from i2e_pipeline.core.config import PairsConfig
from i2e_pipeline.core.errors import ExitCode
from i2e_pipeline.inputs import img2dataset
from i2e_pipeline.inputs.columns import InputError
from i2e_pipeline.inputs.listing import listed
from tests.chain import content, run, settings
from tests.commands.test_fetch import IMAGE, Site, fetched
from tests.commands.test_fetch import open_site as open_site  # fixtures
from tests.commands.test_fetch import python as python
from tests.commands.test_fetch import site as site
from tests.inputs.forms import pairs_of
from tests.inputs.test_forms import with_knowledge as with_knowledge
from tests.marks import but_one

pytestmark = [pytest.mark.env, pytest.mark.slow]
FORMS = ("parquet", "webdataset", "files")
KEPT = ("similarity", "license", "watermark", "seen")


@pytest.mark.long
def test_each_of_its_forms_gives_the_same_dataset(
    world: Path, with_knowledge: Path, open_site: Callable[..., Site], python: str, tmp_path: Path, spark: Any
) -> None:
    """Catches: a form that loses a text, an address or an image on its way to the labels."""
    shards = sorted((world / "pairs").glob("*.parquet"))
    known = [p for shard in shards for p in pairs_of(shard)[:25] if not worker.is_text(p.image[:64])]
    site = open_site({f"/{p.key}": p.image for p in known})
    table = tmp_path / "t.csv"
    gone = {"key": "gone", "caption": "An image that is there no more", "url": site.url("/gone")}
    rows = [
        {"key": p.key, "caption": p.caption, "url": site.url(f"/{p.key}"), **{n: p.facts[n] for n in KEPT}}
        for p in known
    ] + [gone]
    pc_csv.write_csv(pa.Table.from_pylist(rows), table)
    datasets = {}
    for form in FORMS:
        output = tmp_path / form
        shutil.copytree(with_knowledge, output)
        found, pairs = fetched(
            table, tmp_path / f"fetched-{form}", python, keep=[*KEPT, "sha256"], output_format=form, shard_rows=30
        )
        assert found.results == {"success": len(known), "HTTP 404": 1}
        told = pairs.model_dump(include={"path", "text_column", "key_column"})
        overrides = [f"pairs.{name}={list(v) if name == 'path' else v}" for name, v in told.items()]
        overrides += [f"pairs.keep_columns=[{', '.join(KEPT)}, sha256]"]
        assert run(settings(world, output, *overrides), spark)["knowledge_base"] == 0
        images, entities = content(output)
        rows_kept = ds.dataset(output / "i2e" / "images", format="parquet").to_table(["image_id", *KEPT, "sha256"])
        datasets[form] = images, {entity: row["name"] for entity, row in entities.items()}, by_image(rows_kept)
    assert datasets["parquet"] == datasets["webdataset"] == datasets["files"]
    images, names, kept = datasets["parquet"]
    facts = {site.url(f"/{p.key}"): {name: p.facts[name] for name in KEPT} for p in known}
    for image, (sha256, _, url, *_) in images.items():
        assert kept[image] == {**facts[url], "sha256": sha256}
    assert len(images) > 20
    assert len(names) > 5
    assert {url for _, _, url, *_ in images.values()} <= {row["url"] for row in rows}


def by_image(rows: pa.Table) -> dict[bytes, dict[str, Any]]:
    return {row.pop("image_id"): row for row in rows.to_pylist()}


def photo(size: tuple[int, int], kind: str = "JPEG", orientation: int = 1, mode: str = "RGB") -> bytes:
    image, stream = Image.effect_noise(size, 60).convert(mode), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, kind, **({"exif": exif} if orientation > 1 else {}))
    return stream.getvalue()


PHOTOS = {
    "/wide": photo((400, 200)),
    "/on-its-side": photo((400, 200), orientation=6),
    "/transparent": photo((300, 300), "PNG", mode="RGBA"),
    "/fits": photo((120, 100)),
    "/small": photo((60, 20)),
    "/strip": photo((500, 80)),
    "/unknown": b"\x00\x00\x00\x1cftypheic" + bytes(range(256)),
    "/bomb": photo((12_000, 12_000), "PNG", mode="1"),
}


def resized(
    open_site: Callable[..., Site], python: str, folder: Path, **sizes: Any
) -> tuple[Counter[str], dict[str, bytes], str]:
    """Results, images by path, and the column that a run is told of."""
    site = open_site(PHOTOS)
    table = folder / "t.jsonl"
    table.write_text("\n".join(json.dumps({"url": site.url(p), "caption": p}) for p in PHOTOS))
    found, pairs = fetched(table, folder / "in", python, min_image_size=50, max_aspect_ratio=4, **sizes)
    rows = pq.read_table(folder / "in" / "00000.parquet").to_pylist()
    column = pairs.image_column
    return Counter(found.results), {r["caption"]: r[column] for r in rows if r[column] is not None}, column


def test_images_get_another_size_and_stand_upright(open_site: Callable[..., Site], python: str, tmp_path: Path) -> None:
    """Catches: photos on their sides, since EXIF's orientation is lost, and a column that a run does not look for."""
    sizes = {"resize_mode": "keep_ratio_largest", "image_size": 160, "encode_format": "webp", "encode_quality": 80}
    results, images, column = resized(open_site, python, tmp_path, **sizes)
    assert column == "webp"
    assert results["success"] == len(images) == 4
    assert results["image too small"] == results["aspect ratio too large"] == 1
    assert sum(results.values()) == len(PHOTOS)
    shown = {path: Image.open(io.BytesIO(image)) for path, image in images.items()}
    assert {image.format for image in shown.values()} == {"WEBP"}
    wanted = {"/wide": (160, 80), "/on-its-side": (80, 160), "/transparent": (160, 160), "/fits": (120, 100)}
    assert {path: image.size for path, image in shown.items()} == wanted


def test_an_image_that_needs_no_other_size_stays_as_it_came(
    open_site: Callable[..., Site], python: str, tmp_path: Path
) -> None:
    _, images, column = resized(open_site, python, tmp_path, resize_mode="keep_ratio", image_size=150)
    assert column == "jpg"
    assert images["/fits"] == PHOTOS["/fits"]
    assert Image.open(io.BytesIO(images["/wide"])).size == (300, 150)


def test_limits_on_sizes_hold_where_no_size_changes(
    open_site: Callable[..., Site], python: str, tmp_path: Path
) -> None:
    """img2dataset passes over its limits where it encodes nothing. What it cannot decode is left to the run."""
    results, images, _ = resized(open_site, python, tmp_path)
    assert results == {"success": 6, "image too small": 1, "aspect ratio too large": 1}
    assert images == {path: image for path, image in PHOTOS.items() if path not in ("/small", "/strip")}


# Kills

ROWS, SHARD = 120, 20


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def stored(folder: Path, form: str) -> list[tuple[str, str]]:
    """Address and digest of every image that a run would read, by other means than a run's."""

    def pair(facts: str | bytes, image: bytes) -> tuple[str, str]:
        return json.loads(facts)["url"], hashlib.sha256(image).hexdigest()

    if form == "parquet":
        rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        return [(r["url"], hashlib.sha256(r["jpg"]).hexdigest()) for r in rows if r["jpg"] is not None]
    if form == "files":
        images = folder.glob("*/*.jpg")
        return [pair(path.with_suffix(".json").read_bytes(), path.read_bytes()) for path in images]
    found = []
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
        found += [pair(members[name[:-3] + "json"], members[name]) for name in members if name.endswith("jpg")]
    return found


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux's /proc says which process is whose")
@pytest.mark.parametrize("form", but_one("webdataset", FORMS))
def test_killed_again_and_again_nothing_is_lost_or_twice(
    form: str, open_site: Callable[..., Site], python: str, tmp_path: Path
) -> None:
    """Killed are, one after the other and in the middle of shards: the command, img2dataset, a fetching process."""
    images = {f"/{n}": IMAGE + str(n).encode() for n in range(ROWS)}
    site, folder = open_site(dict(images)), tmp_path / "fetched"
    site.pause = 0.1
    rows = [{"url": site.url(path), "caption": f"of {path}"} for path in images]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        sys.executable, "-m", "i2e_pipeline.cli", "fetch", "--set", f"pairs.path={tmp_path}/t.jsonl",
        f"output={tmp_path}", "fetch.contact=me@example.org", f"fetch.python={python}", "fetch.allow_private=true",
        "fetch.threads=2", "fetch.processes=2", f"fetch.output_format={form}", f"fetch.shard_rows={SHARD}",
    ]  # fmt: skip

    def started(answers: int) -> subprocess.Popen[str]:
        """The command, when so many more addresses were asked for."""
        before, began = len(site.asked), time.monotonic()
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while len(site.asked) < before + answers and running.poll() is None and time.monotonic() - began < 90:
            time.sleep(0.01)
        assert running.poll() is None, running.communicate()[0]
        return running

    first = started(SHARD + SHARD // 2)
    (of_img2dataset,) = children(first.pid)
    left = [of_img2dataset, *children(of_img2dataset)]
    first.kill()
    first.wait()
    began = time.monotonic()
    while any(map(runs, left)):
        assert time.monotonic() - began < 10, "img2dataset runs on without the command"
        time.sleep(0.05)
    with pytest.raises(InputError, match=r"`i2e fetch` has filled \d of 6 shards"):
        listed(PairsConfig(path=(str(folder),)))
    # An image that was there, in a shard that is not whole, is there no more.
    whole = {int(number) for number in img2dataset.done(str(folder))}
    gone = next(path for path, _ in site.asked if int(path[1:]) // SHARD not in whole)
    del site.images[gone]

    second = started(SHARD // 2)
    (of_img2dataset,) = children(second.pid)
    os.kill(of_img2dataset, signal.SIGKILL)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == ExitCode.FAULT, said
    assert "img2dataset ended with -9" in said
    asked = len(site.asked)
    time.sleep(1)
    assert len(site.asked) == asked

    third = started(SHARD // 2)
    (of_img2dataset,) = children(third.pid)
    spawned = [p for p in children(of_img2dataset) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(max(spawned), signal.SIGKILL)  # the others are the one that logs, which came first, and the other shard's
    said, _ = third.communicate(timeout=120)
    assert third.returncode == 0, said
    assert f"{ROWS - 1} of {ROWS} images fetched" in said
    assert "1  HTTP 404" in said
    assert "its process ended with -9" in (folder / "_fetch" / "log.txt").read_text()

    wanted = {site.url(path): hashlib.sha256(image).hexdigest() for path, image in images.items() if path != gone}
    assert sorted(stored(folder, form)) == sorted(wanted.items())
    assert listed(PairsConfig(path=(str(folder),)))


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS)
def test_a_shard_that_could_not_be_written_is_not_done(
    form: str, open_site: Callable[..., Site], python: str, tmp_path: Path
) -> None:
    """Catches: samples that are lost where a disk is full, in a shard that img2dataset counts as done."""
    images = {f"/{n}": IMAGE * 30 + str(n).encode() for n in range(8)}
    site = open_site(images)
    rows = [{"url": site.url(path), "caption": f"of {path}"} for path in images]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        sys.executable, "-m", "i2e_pipeline.cli", "fetch", "--set", f"pairs.path={tmp_path}/t.jsonl",
        f"output={tmp_path}", "fetch.contact=me@example.org", f"fetch.python={python}", "fetch.allow_private=true",
        f"fetch.output_format={form}",
    ]  # fmt: skip
    small = 100_000  # bytes of a file: writing more fails, as on a full disk
    limited = [sys.executable, "-c", f"import os, resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, ({small}, {small}));"
               "os.execv(sys.argv[1], sys.argv[1:])", *command]  # fmt: skip
    done = subprocess.run(limited, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == ExitCode.FAULT, said
    assert "1 of 1 shards could not be written; the same command tries them again" in said
    assert "File too large" in (tmp_path / "fetched" / "_fetch" / "log.txt").read_text()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "8 of 8 images fetched" in done.stdout + done.stderr
    wanted = {site.url(path): hashlib.sha256(image).hexdigest() for path, image in images.items()}
    assert sorted(stored(tmp_path / "fetched", form)) == sorted(wanted.items())


def test_one_fetch_fills_a_folder(site: Site, python: str, tmp_path: Path) -> None:
    """Catches: two that write the same shards."""
    site.pause = 3
    (tmp_path / "t.csv").write_text(f"url,caption\n{site.url('/image')},one\n")
    with subprocess.Popen(
        [sys.executable, "-m", "i2e_pipeline.cli", "fetch", "--set", f"pairs.path={tmp_path}/t.csv",
         f"fetch.folder={tmp_path}/in", f"output={tmp_path}", "fetch.contact=me@example.org", f"fetch.python={python}",
         "fetch.allow_private=true"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as other:  # fmt: skip
        began = time.monotonic()
        while not site.asked and other.poll() is None and time.monotonic() - began < 90:
            time.sleep(0.1)
        with pytest.raises(FetchError, match="being filled by another `i2e fetch`"):
            fetched(tmp_path / "t.csv", tmp_path / "in", python)
        said, _ = other.communicate(timeout=60)
    assert "1 of 1 images fetched" in said
    assert fetched(tmp_path / "t.csv", tmp_path / "in", python)[0].images == 1
