"""`i2e clean --purge`: what lists name is found nowhere below the output, and the dataset stays as it is."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from i2e_pipeline.commands.clean import clean
from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config
from i2e_pipeline.core.ids import content_id
from i2e_pipeline.engine import merging
from i2e_pipeline.engine.stage import StageError
from i2e_pipeline.engine.units import Units
from i2e_pipeline.inputs import formats, marks
from i2e_pipeline.report.page import write_page
from i2e_pipeline.stages import pipeline
from tests.chain import content, run, settings

pytestmark = pytest.mark.slow

LETTERLESS = "48213 / 99731 # 7"
Needles = dict[str, bytes]


@dataclass(frozen=True)
class Made:
    """A finished output with kept vectors, and what of it is to go."""

    world: Path
    pairs: Path
    output: Path
    storage: str
    lists: Path
    gone: Mapping[str, dict[str, Any]]
    """Rows of the input that are to leave nothing, by what lists them."""
    shared_text: str
    """Of one of them, and of a pair that stays."""
    other_url: str
    """Under which an image stays that is listed by another address."""
    stays: str
    """That image's id."""

    def settings(self, output: Path, *overrides: str, listed: bool = True) -> Config:
        lists = [f"select.exclude={self.lists}"] if listed else []
        paths = [f"pairs.path={self.pairs}/*.parquet", f"storage.format={self.storage}", "score.keep_vectors=true"]
        return settings(self.world, output, *paths, *lists, *overrides)


@pytest.fixture(scope="module", params=["parquet", pytest.param("delta", marks=[pytest.mark.delta, pytest.mark.long])])
def made(request: pytest.FixtureRequest, world: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Images that two addresses hold, texts that two pairs have, listed rows that became no pair or no label."""
    spark, folder = request.getfixturevalue("spark"), tmp_path_factory.mktemp("purge")
    shards = [pq.read_table(world / "pairs" / f"0000{n}.parquet") for n in range(2)]
    published = {url: image for image, (_, _, url, _, _) in content(whole)[0].items()}
    rows = [row for shard in shards for row in shard.to_pylist()]
    captions = [row["caption"] or "" for row in rows]

    def alone(row: Mapping[str, Any]) -> bool:
        words = row["caption"].lower()
        return len(words) > 20 and sum(words in other.lower() for other in captions) == 1

    good = [row for row in rows if row["url"] in published and row["caption"] and alone(row)]
    by_id, by_url, by_hash, by_domain, other = good[:5]
    by_domain["url"] = "https://d.gone.example/d.jpg"
    further = [
        {**by_id, "url": "https://two.example/a.jpg", "caption": "an apple that nobody else calls so"},
        {**by_url, "url": "https://two.example/b.jpg"},
        {**other, "url": "https://two.example/c.jpg", "caption": by_hash["caption"]},
        {**by_domain, "url": "https://gone.example/nothing.jpg", "caption": "quite without any name at all"},
        {**by_domain, "url": "https://gone.example/letterless.jpg", "caption": LETTERLESS},
    ]
    for n, row in enumerate([*rows, *further]):
        row["key"] = f"key-{n}-of-a-row"
    (folder / "pairs").mkdir()
    half = len(shards[0])
    for n, part in enumerate((rows[:half] + further, rows[half:])):
        pq.write_table(pa.Table.from_pylist(part, shards[0].schema), folder / "pairs" / f"{n}.parquet")
    one = Made(
        world, folder / "pairs", folder / "out", request.param, folder / "lists",
        {"image": by_id, "url": by_url, "hash": by_hash, "domain": by_domain, "two": further[0],
         "nameless": further[3], "letterless": further[4]},
        by_hash["caption"], further[1]["url"], content_id(by_url["jpg"]).hex(),
    )  # fmt: skip
    run(one.settings(one.output, listed=False), spark)
    one.lists.mkdir()
    (hashes,) = {row["image_hash"] for row in of_image(one.output, by_hash) if row.get("image_hash")}
    told = [content_id(by_id["jpg"]).hex(), by_url["url"], "gone.example", hashes.hex()]
    (one.lists / "a.txt").write_text("".join(f"{line}\n" for line in told))
    return one


def tables_of(output: Path) -> Iterator[tuple[Path, pa.Table]]:
    for path in sorted(output.rglob("*.parquet")):
        if "_delta_log" not in path.parts:
            yield path, pq.read_table(path, partitioning=None)


def of_image(output: Path, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of all tables that name the image of an input row."""
    wanted = content_id(row["jpg"])
    return [
        found
        for _, table in tables_of(output)
        if "image_id" in table.column_names
        for found in table.to_pylist()
        if found["image_id"] in (wanted, wanted.hex())
    ]


def cells(value: Any) -> Iterator[bytes]:
    """Every text and all bytes in a value, however deep."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from cells(key)
            yield from cells(held)
    elif isinstance(value, list):
        for held in value:
            yield from cells(held)


def pieces(path: Path) -> Iterator[bytes]:
    """A file as it lies there, and what is packed in it."""
    raw = path.read_bytes()
    yield raw
    if path.suffix == ".parquet":
        opened = pq.ParquetFile(path)
        yield from cells(opened.read().to_pylist())
        for group in range(opened.metadata.num_row_groups):
            for column in range(opened.metadata.num_columns):
                known = opened.metadata.row_group(group).column(column).statistics
                if known is not None and known.has_min_max:
                    yield from cells([known.min, known.max])
    elif path.suffix == ".json":
        for line in raw.splitlines() if "_delta_log" in path.parts else [raw]:
            yield from cells(json.loads(line))
    elif path.suffix == ".html":
        for packed in re.findall(rb"base64,([A-Za-z0-9+/=]+)", raw):
            yield base64.b64decode(packed)


def found_in(output: Path, needles: Needles) -> dict[str, set[str]]:
    """Needle to the files in which it is, by their first folder or name."""
    found: dict[str, set[str]] = {}
    for path in sorted(p for p in output.rglob("*") if p.is_file()):
        content = b"\0\0".join(pieces(path))
        for name, needle in needles.items():
            if needle in content:
                found.setdefault(name, set()).add(path.relative_to(output).as_posix())
    return found


def needles_of(made: Made, output: Path) -> Needles:
    """What must be found nowhere, as it is found now."""
    needles: Needles = {}
    pairs = {row["url"]: row for path, t in tables_of(output / "pairs") for row in t.to_pylist()}
    texts = {row["text_id"]: row["text"] for _, t in tables_of(output / "texts") for row in t.to_pylist()}
    for name, row in made.gone.items():
        needles[f"{name}: url"] = row["url"].encode()
        needles[f"{name}: key"] = row["key"].encode()
        if name == "letterless":
            needles[f"{name}: text"] = LETTERLESS.encode()
            continue
        pair = pairs[row["url"]]
        for kind, id_ in (("pair id", pair["pair_id"]), ("text id", pair["text_id"])):
            if kind == "text id" and name in ("hash", "url"):  # pairs that stay have it, too
                continue
            needles[f"{name}: {kind}"], needles[f"{name}: {kind} in hex"] = id_, id_.hex().encode()
            if kind == "text id":
                needles[f"{name}: text"] = texts[id_].encode()
        if name in ("url", "nameless"):
            continue
        image, image_id = row["jpg"], content_id(row["jpg"])
        (vector,) = {r["vector"] for r in of_image(output, row) if r.get("vector")}
        (hashed,) = {r["image_hash"] for r in of_image(output, row) if r.get("image_hash")}
        needles |= {
            f"{name}: vector": vector, f"{name}: hash": hashed, f"{name}: hash in hex": hashed.hex().encode(),
            f"{name}: image": image, f"{name}: image id": image_id, f"{name}: image id in hex": image_id.hex().encode(),
            f"{name}: short id in hex": image_id.hex()[:12].encode(),
        }  # fmt: skip
    return needles


def test_what_is_listed_is_found_nowhere_and_nothing_else_changes(made: Made, tmp_path: Path, spark: Any) -> None:
    output = tmp_path / "out"
    shutil.copytree(made.output, output)
    needles, config = needles_of(made, output), made.settings(output)
    absent = {name for name in needles.keys() - found_in(output, needles).keys() if not name.endswith(" in hex")}
    assert absent == {"letterless: url", "letterless: key"}  # a row that became no pair has them in the input alone
    whole = pipeline(config, lambda: spark)
    with pytest.raises(StageError, match=r"stage select is to do for all .*`i2e run` first"):
        clean(whole, purged=True)

    run(config, spark)
    write_page(whole)
    ids = [content_id(row["jpg"]).hex() for row in made.gone.values() if row["jpg"]]
    for image_id in [*ids, made.stays]:
        marks.append(str(output / "marks.jsonl"), marks.Mark(image_id, 89, "right"))
    (output / "_explore").mkdir()
    (output / "_explore" / "index").write_text(" ".join(ids))
    published = content(output) if made.storage == "parquet" else None
    left = found_in(output, needles)
    assert {"image: vector", "hash: vector", "domain: url", "nameless: text", "letterless: text"} <= left.keys()
    before, report = files.read_json(str(output / "i2e" / "manifest.json")), (output / "report.html").read_bytes()

    def state() -> dict[str, bytes]:
        return {p.as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file() and p.name != "_lock"}

    lying = state()
    asked = clean(whole, dry_run=True, purged=True)
    assert state() == lying
    done = clean(whole, purged=True)
    rows = {one.path for one in asked if one.kind == "purged"}
    assert rows == {one.path for one in done if one.kind == "purged"}
    assert "pairs, 6 rows" in rows
    assert found_in(output, needles) == {}
    assert not (output / "_explore").exists()
    assert [m["image_id"].hex() for m in marks.read(str(output / "marks.jsonl")).to_pylist()] == [made.stays]
    assert (output / "report.html").read_bytes() != report

    # An image stays where another address holds it, and a text where another pair has it, which counts one less.
    assert [row["url"] for row in of_image(output / "i2e", {"jpg": made.gone["url"]["jpg"]}) if "url" in row] == [
        made.other_url
    ]
    texts = [
        r
        for _, t in tables_of(output / "texts")
        for r in t.to_pylist()
        if r["text"] in (made.shared_text, made.gone["url"]["caption"])
    ]
    assert [r["pairs"] for r in texts] == [1, 1]

    # The manifest says so, and all counts agree.
    manifest = files.read_json(str(output / "i2e" / "manifest.json"))
    assert manifest["purged"] == {"excluded_domain": 2, "excluded_hash": 1, "excluded_image": 2, "excluded_url": 1}
    assert {k: v for k, v in manifest.items() if k not in ("funnel", "purged")} == {
        k: v for k, v in before.items() if k != "funnel"
    }
    agrees(output, manifest)
    readme = (output / "i2e" / "README.md").read_text()
    assert "excluded_hash 1" in readme
    assert not any(reason.startswith("excluded") for reason in manifest["funnel"][-1]["rejected"])

    # Nothing is left to do, whoever asks.
    assert not any(run(config, spark).values())
    assert published is None or content(output) == published
    assert not any(one.kind == "purged" for one in clean(whole, purged=True))
    assert files.read_json(str(output / "i2e" / "manifest.json")) == manifest

    # A run that makes the manifest again writes the same bytes.
    written = (output / "i2e" / "manifest.json").read_bytes()
    (output / "i2e" / "manifest.json").unlink()
    assert run(config, spark)["finish"] == 1
    assert (output / "i2e" / "manifest.json").read_bytes() == written

    # A change of what comes first among the stages that do not read the input goes through them all.
    changed = made.settings(output, "extract.min_link_probability=0.2")
    worked = run(changed, spark)
    assert worked["pairs"] == 0
    assert worked["extract"] == worked["score"] == 2
    clean(pipeline(changed, lambda: spark))
    assert found_in(output, needles) == {}
    agrees(output, files.read_json(str(output / "i2e" / "manifest.json")))


def agrees(output: Path, manifest: Mapping[str, Any]) -> None:
    """As many rejects as are counted, and what a stage passes on comes to the next."""
    counted: dict[tuple[str, str], int] = {}
    for path, table in tables_of(output / "rejects"):
        stage = path.relative_to(output / "rejects").parts[0].removeprefix("stage=")
        for reason in table["reason"].to_pylist():
            counted[stage, reason] = counted.get((stage, reason), 0) + 1
    for step in manifest["funnel"]:
        assert step["rows_in"] == step["rows_out"] + sum(step["rejected"].values()), step
        for reason, n in step["rejected"].items():
            assert counted[step["stage"], reason] == n, (step, reason)
    steps = {step["stage"]: step for step in manifest["funnel"]}
    for one, next_ in (("pairs", "score"), ("score", "label"), ("label", "select")):
        assert steps[one]["rows_out"] == steps[next_]["rows_in"]
    texts = [row for _, table in tables_of(output / "texts") for row in table.to_pylist()]
    assert (len(texts), sum(r["pairs"] for r in texts)) == (steps["extract"]["rows_in"], steps["pairs"]["rows_out"])
    mentions = sum(len(table) for _, table in tables_of(output / "mentions"))
    assert mentions == steps["link"]["rows_in"]


@pytest.fixture(scope="module")
def listed(made: Made, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The output after the next run: the dataset holds nothing of what is listed, the run's own tables do. Without its
    report, which takes as long to draw as all the rest."""
    output = tmp_path_factory.mktemp("listed") / "out"
    shutil.copytree(made.output, output)
    run(made.settings(output), request.getfixturevalue("spark"))
    (output / "report.html").unlink(missing_ok=True)
    return output


class Killed(BaseException):
    """What a signal would do."""


@pytest.mark.long
def test_a_kill_at_any_change_of_a_file_leaves_what_the_next_purge_ends(
    made: Made, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needles = needles_of(made, listed)
    left = 0

    def dying(call: Callable[..., Any], after: bool) -> Callable[..., Any]:
        def instead(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0 or (left == 0 and not after):  # who is dead tidies nothing up
                raise Killed
            result = call(*arguments, **named)
            if left == 0:
                raise Killed
            return result

        return instead

    died, step = 0, 4 if made.storage == "parquet" else 9
    for n in range(1, 1000, step):
        output = tmp_path / f"{n}"
        shutil.copytree(listed, output)
        config, left = made.settings(output), n
        with monkeypatch.context() as patched:
            for name in ("move_file", "remove", "write_bytes"):
                patched.setattr(files, name, dying(getattr(files, name), after=n // step % 2 == 1))
            try:
                clean(pipeline(config), purged=True)
            except Killed:
                died += 1
        ended = left > 0
        (output / "_lock").unlink(missing_ok=True)  # the process that holds it is this one
        alive = pipeline(config, lambda: pytest.fail("Spark was started"))
        with alive.exclusive():
            assert not any(state.to_do for state in alive.status()[1])
        clean(alive, purged=True)
        assert found_in(output, needles) == {}, n
        agrees(output, files.read_json(str(output / "i2e" / "manifest.json")))
        assert not any(state.to_do for state in alive.status()[1])
        shutil.rmtree(output)
        if ended:
            break
    assert died >= 5


def test_what_cannot_be_purged_is_said(made: Made, listed: Path, tmp_path: Path) -> None:
    shutil.copytree(listed, tmp_path / "out")
    entities = tmp_path / "entities.txt"
    entities.write_text("Q308\n")
    config = made.settings(tmp_path / "out")
    for lists in ([], [str(entities)]):
        other = config.model_copy(update={"select": config.select.model_copy(update={"exclude": tuple(lists)})})
        with pytest.raises(StageError, match=r"select\.exclude lists no address"):
            clean(pipeline(other), purged=True)
    records = pipeline(config).tables.records
    commit = next(iter(records.read("label").values()))
    records.add("screen", [replace(commit, stage="screen")])
    with pytest.raises(StageError, match=r"screen: no stage of this config.*--removed-stages"):
        clean(pipeline(config), purged=True)


def test_rows_of_a_step_are_few_units_at_a_time(
    made: Made, listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a purge of all units that lies twice on the disk, and one of which a part counts for nothing."""
    shutil.copytree(listed, tmp_path / "out")
    puts: list[set[str]] = []
    put = merging.replace_files

    def noted(tables: Any, place: str, stages: Any, **how: bool) -> None:
        puts.append({commit.unit for commits in stages.values() for commit in commits})
        put(tables, place, stages, **how)

    monkeypatch.setattr(merging, "replace_files", noted)
    monkeypatch.setattr("i2e_pipeline.commands.purge._FILES_AT_ONCE", 1)
    config = made.settings(tmp_path / "out")
    needles = needles_of(made, listed)
    clean(pipeline(config), purged=True)
    assert all(len(units - {"all"}) <= 1 for units in puts)
    assert found_in(tmp_path / "out", needles) == {}
    agrees(tmp_path / "out", files.read_json(str(tmp_path / "out" / "i2e" / "manifest.json")))


def test_the_rows_of_a_table_of_texts_are_emptied_where_the_registry_repeats_them(tmp_path: Path) -> None:
    """Catches: an address, and its caption, in `units/index` of CSV and JSON lines."""
    rows = [
        {"key": f"k{n}", "url": f"https://{n}.example/", "text": f"text {n}", "image": f"{n}.jpg"} for n in range(5)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["key,url,text,image", *(",".join(row.values()).replace("text", "words") for row in rows)]
    (tmp_path / "b.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "0.jpg").write_bytes(b"\xff\xd8\xff")
    config = settings(
        tmp_path, tmp_path / "out", f"pairs.path=[{tmp_path}/a.jsonl,{tmp_path}/b.csv]", "pairs.text_column=text",
        "pairs.image_column=image",
    )  # fmt: skip
    registry = Units(config.output)
    for unit in registry.plan(config.pairs):
        for file in unit.files:
            assert registry.repeats(file)
            assert b"3.example" in b"".join(cells(pq.read_table(registry._index(file.digest)).to_pylist()))
            registry.empty_rows(file, {3})
            assert b"3.example" not in b"".join(cells(pq.read_table(registry._index(file.digest)).to_pylist()))
            shard = registry.shard(file, config.pairs)
            read = [
                r for _, b in formats.columns(shard, ["url", "text"]) for r in formats.texts(shard, b)[0].to_pylist()
            ]
            assert [r["url"] for r in read] == [None if n == 3 else f"https://{n}.example/" for n in range(5)]
            with formats.images(shard) as images:
                assert list(images.read([0, 3]))[1] is None
    assert registry.plan(config.pairs) == registry.known()
