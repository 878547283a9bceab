"""`i2e plan`: what a run will cost before it is paid for, from costs per row.

Reads    costs.json beside this file, which benchmarks/costs.py writes: costs per row of each stage, bytes per row of
         each table, images per second of cards, each with its source · with `--from OUT`, a run's own commit records
Writes   nothing: an Estimate, which summary.print_plan shows

A run's records give what only its corpus knows (how many rows a pair makes in each stage, how long a row is) and its
machine's speed. Two or more of them, of different sizes, tell apart what a stage costs in any case and what it costs a
row; one alone is taken to have no fixed cost. Stages that only some configs have (a reranker, a verifier, one from
outside) are counted where such runs have run them.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.files import at_home
from i2e_pipeline.core.packaged import folder
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.units import Units

log = logging.getLogger(__name__)

COSTS = folder("i2e_pipeline.commands") / "costs.json"
PRICES = {
    "core": "an hour of a core",
    "gpu": "an hour of a GPU",
    "tb-month": "a month of 10^12 bytes",
    "get": "1,000 GET requests",
    "put": "1,000 PUT, COPY and LIST requests",
}
"""What has a price, each in words."""
FROM = "from"
"""The source of what the records of runs say."""


_WIDTH = 768
"""Of a vector, where the model's is not known."""


class PlanError(I2EError, ValueError):
    """An argument that no plan can be made of; the message names it, its value and the way out."""


@dataclass(frozen=True)
class StageCost:
    """What a stage costs. Rows are those that come in."""

    per: str
    """What its rows grow with: "pair", or "entity" of the dump."""
    rows_per: float
    """Rows for each of these."""
    core_seconds: float
    """Of each row."""
    shuffle_bytes: float
    """Of each row."""
    source: str
    rows_source: str
    fixed_seconds: float = 0.0
    """What it takes in any case, on any number of cores."""
    images: bool = False
    """Whether its rows are images that the model sees: a GPU's work, where there is one."""
    reads_images: float = 0.0
    """How many times it reads the stored images of all pairs."""
    per_unit: bool = True
    """Whether it commits unit by unit, each of which costs the driver time."""
    rows_per_task: float = 0.0
    """Rows of a unit that one task has; 0: what it writes is few files."""
    mb_per_task: float = 0.0
    """The same in stored bytes of images, in MB."""
    files_per_task: int = 0
    """A task leaves one in every table, and one of rejects."""

    def files_of_unit(self, wanted: Request) -> float:
        """Files that it writes of a unit."""
        tasks = 0.0
        if self.rows_per_task:
            tasks = math.ceil(wanted.rows_per_unit * self.rows_per / self.rows_per_task)
        elif self.mb_per_task:
            tasks = math.ceil(wanted.rows_per_unit * wanted.image_kb / 1000 / self.mb_per_task)
        return tasks * self.files_per_task


@dataclass(frozen=True)
class TableCost:
    per: str
    rows_per: float
    row_bytes: float
    source: str
    rows_source: str
    images: bool = False
    """Whether a row holds a stored image, of the size that is asked for."""
    vectors: bool = False
    """Whether a row holds a vector of the model, in float16, beside its `row_bytes`."""


@dataclass(frozen=True)
class Costs:
    stages: Mapping[str, StageCost]
    tables: Mapping[str, TableCost]
    cards: Mapping[str, Any]
    """By card: images per second of the forward pass by model, and how well cores and card overlap."""
    feeding: Mapping[str, float]
    """Core seconds of all that the kernel does of an image beside the model, by stored KB."""
    constants: Mapping[str, float]
    """Single figures, such as the bytes that the driver holds of an input file."""
    sources: Mapping[str, Mapping[str, str]]
    widths: Mapping[str, int]
    """Numbers of an image's vector, by model."""

    def feed(self, kilobytes: float) -> float:
        """Core seconds of an image of this stored size: the line through the two sizes that were measured."""
        small, large = sorted((float(size), cost) for size, cost in self.feeding.items())
        slope = (large[1] - small[1]) / (large[0] - small[0])
        return max(small[1] + slope * (kilobytes - small[0]), small[1] / 4)


def load(path: Path = COSTS) -> Costs:
    """The costs that ship with the package, or those of another such file."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Costs(
            {name: StageCost(**cost) for name, cost in tree["stages"].items()},
            {name: TableCost(**cost) for name, cost in tree["tables"].items()},
            tree["cards"], tree["feeding"]["core_seconds"], {n: c["value"] for n, c in tree["constants"].items()},
            tree["sources"], tree.get("vector_widths", {}),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{path} holds no costs: {error!r}; benchmarks/costs.py writes such a file") from error


# A run's own records


@dataclass(frozen=True)
class Records:
    """What a finished run's commit records say."""

    pairs: int
    units: int
    rows: Mapping[str, int]
    """Rows in, by stage."""
    seconds: Mapping[str, float]
    tables: Mapping[str, tuple[int, int]]
    """Rows and bytes by table."""


def records(output: str, stages: Sequence[str]) -> Records:
    """Of one output: of these stages, and of all others that have been run there. Raises PlanError where there is none,
    or one of these stages has not been run."""
    tables, units = Tables(output), Units(output).known()
    names = {unit.name for unit in units}
    pairs = sum(unit.rows for unit in units)
    if not pairs:
        raise PlanError(f"--from {output}: no run has read pairs into it; name the `output` of a finished run")
    rows, seconds = {}, {}
    written: dict[str, tuple[int, int]] = {}
    for stage in (*stages, *sorted(set(tables.committed_stages()) - set(stages))):
        commits = list(tables.commits(stage).values())
        made = {commit.unit for commit in commits}
        left = len(names - made) if made & names else 0
        if stage not in stages and (left or not commits):
            log.warning("%s: the stage %s is in %d of %d units, and not counted", output, stage, len(made), len(names))
            continue
        if not commits:
            raise PlanError(f"--from {output}: the stage {stage} has not been run there: finish it with `i2e run`")
        if left:
            raise PlanError(
                f"--from {output}: {left} of {len(names)} units of the stage {stage} are not made: finish it with "
                "`i2e run`"
            )
        rows[stage] = sum(c.rows_in for c in commits)
        seconds[stage] = sum(c.seconds for c in commits)
        for commit in commits:
            for table, found in commit.files.items():
                before = written.get(table, (0, 0))
                written[table] = before[0] + sum(f.rows for f in found), before[1] + sum(f.bytes for f in found)
    return Records(pairs, len(units), rows, seconds, written)


def fitted(costs: Costs, runs: Sequence[Records], cores: int) -> Costs:
    """The costs with what these runs say in the place of what the package knows. `cores`: of their machine."""
    sizes = sorted({run.pairs for run in runs})
    source = f"the runs named by --from: {', '.join(f'{size:,}' for size in sizes)} pairs on {cores} cores"
    stages = {}
    for name, known in costs.stages.items():
        fixed, seconds = _line(runs, lambda run, name=name: run.seconds[name], known.per == "pair")
        rows_fixed, rows = _line(runs, lambda run, name=name: run.rows[name], known.per == "pair")
        if known.per == "pair" and rows > 0:
            stages[name] = replace(
                known, rows_per=rows, core_seconds=seconds * cores / rows, fixed_seconds=fixed,
                source=FROM, rows_source=FROM,
            )  # fmt: skip
        else:
            # A pilot's dump is small, and says what such a stage takes in any case; of a row of the whole dump it says
            # nothing, so that stays what it was.
            of_rows = known.core_seconds * rows_fixed / cores
            stages[name] = replace(known, fixed_seconds=max(0.0, fixed + seconds * sizes[-1] - of_rows))
    for name in sorted({s for run in runs for s in run.seconds} - stages.keys()):
        if not all(name in run.seconds for run in runs):
            raise PlanError(
                f"the stage {name} has been run in some of the outputs named by --from and not in others: name runs of "
                "one config"
            )
        fixed, seconds = _line(runs, lambda run, name=name: run.seconds[name], True)
        _, rows = _line(runs, lambda run, name=name: run.rows[name], True)
        stages[name] = StageCost("pair", rows, seconds * cores / rows if rows else 0.0, 0.0, FROM, FROM, fixed)
    tables = dict(costs.tables)
    for name in sorted({t for run in runs for t in run.tables}):
        _, rows = _line(runs, lambda run, name=name: run.tables.get(name, (0, 0))[0], True)
        _, size = _line(runs, lambda run, name=name: run.tables.get(name, (0, 0))[1], True)
        known_table = costs.tables.get(name)
        if (known_table is None or known_table.per == "pair") and rows > 0:
            tables[name] = TableCost("pair", rows, size / rows, FROM, FROM)
    return replace(
        costs, stages=stages, tables=tables,
        sources={**costs.sources, FROM: {"kind": "measured", "what": source}},
    )  # fmt: skip


def _line(runs: Sequence[Records], value: Any, grows: bool) -> tuple[float, float]:
    """(fixed, per pair) of a figure over runs of several sizes, neither below zero."""
    x = np.array([run.pairs for run in runs], dtype=float)
    y = np.array([value(run) for run in runs], dtype=float)
    if not grows:
        return float(y.mean()), 0.0
    if len(set(x.tolist())) < 2:
        return 0.0, float(y.sum() / x.sum())
    slope, fixed = np.polyfit(x, y, 1)
    if slope <= 0:
        # Noise: a small run took longer than a large one. No stage is free, so the largest tells what a pair costs.
        return 0.0, float(y[x.argmax()] / x.max())
    if fixed < 0:
        return 0.0, float((x * y).sum() / (x * x).sum())
    return float(fixed), float(slope)


# The estimate


@dataclass(frozen=True)
class Request:
    """What is to be planned."""

    pairs: int
    image_kb: float
    model: str
    gpus: int
    cores: int
    card: str
    entities: int
    """Entities of the dump."""
    rows_per_file: int
    rows_per_unit: int
    prices: Mapping[str, float]
    object_store: bool = True
    """Whether the output lies on one, where putting a file in place is a copy."""


@dataclass(frozen=True)
class StageEstimate:
    stage: str
    rows: float
    core_hours: float
    gpu_hours: float
    """In which a GPU works; it is held for `hours`."""
    hours: float
    """Wall time."""
    shuffle_tb: float
    source: str


@dataclass(frozen=True)
class Estimate:
    request: Request
    stages: tuple[StageEstimate, ...]
    storage_tb: Mapping[str, float]
    input_tb: float
    images_per_second_per_gpu: float | None
    """As the cores feed it."""
    cores_that_feed_a_gpu: float | None
    driver_gb: float
    driver_hours: float
    units: int
    requests: Mapping[str, float]
    money: Mapping[str, float]
    sources: Mapping[str, Mapping[str, str]]

    @property
    def hours(self) -> float:
        return sum(s.hours for s in self.stages)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"hours": self.hours}


def request(options: Any, costs: Costs) -> Request:
    """The command's arguments, checked. Raises PlanError."""
    pairs = int(_number("--pairs", options.pairs, 1))
    gpus = int(_number("--gpus", options.gpus, 0))
    cores = int(_number("--cores", options.cores, 1))
    if options.card not in costs.cards:
        raise PlanError(f"--card {options.card}: no such card was measured; known are {', '.join(costs.cards)}")
    if gpus:
        _rate_of(costs, options.card, options.model)
    return Request(
        pairs, _number("--image-kb", options.image_kb, 0.1), options.model, gpus, cores, options.card,
        int(_number("--entities", options.entities, 1)), int(_number("--rows-per-file", options.rows_per_file, 1)),
        int(_number("--rows-per-unit", options.rows_per_unit, 1)), prices(options.price or ""),
        options.store == "object",
    )  # fmt: skip


def prices(text: str) -> dict[str, float]:
    """`core=0.04,gpu=2.0,tb-month=20` as numbers."""
    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, sign, value = part.partition("=")
        if name not in PRICES or not sign:
            known = ", ".join(f"{n}=… ({what})" for n, what in PRICES.items())
            raise PlanError(f"--price {part}: write NAME=NUMBER with one of {known}")
        found[name] = _number(f"--price {name}", value, 0)
    return found


def _number(name: str, value: Any, least: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not least <= number < float("inf"):
        raise PlanError(f"{name} {value}: a number of at least {least:g} is wanted, such as 8.4e9")
    return number


def _rate_of(costs: Costs, card: str, model: str) -> float:
    known = costs.cards[card]["images_per_second"]
    if model not in known:
        raise PlanError(
            f"--model {model}: its speed on a {card} was not measured; known are {', '.join(known)}. "
            "`python benchmarks/gpu.py --models …` measures one"
        )
    return float(known[model])


def estimate(costs: Costs, wanted: Request) -> Estimate:
    """What the run will cost."""
    units, files = -(-wanted.pairs // wanted.rows_per_unit), -(-wanted.pairs // wanted.rows_per_file)
    rate = feeds = None
    if wanted.gpus:
        alone, feed = _rate_of(costs, wanted.card, wanted.model), costs.feed(wanted.image_kb)
        feeds = alone * feed
        rate = costs.cards[wanted.card]["overlap"] * min(alone, wanted.cores / wanted.gpus / feed)
    stages = tuple(_stage(name, cost, costs, wanted, units, rate) for name, cost in costs.stages.items())
    written = units * sum(cost.files_of_unit(wanted) for cost in costs.stages.values())
    driver_bytes = files * costs.constants["driver_bytes_per_file"]
    driver_bytes += written * costs.constants["driver_bytes_per_written_file"]
    found = Estimate(
        wanted,
        stages,
        {name: _table_bytes(table, costs, wanted) / 1e12 for name, table in costs.tables.items()},
        wanted.pairs * wanted.image_kb * 1e3 / 1e12,
        rate,
        feeds,
        costs.constants["driver_base_gb"] + driver_bytes / 1e9,
        sum(_driver_seconds(cost, costs, wanted, units) for cost in costs.stages.values()) / 3600,
        units,
        _requests(costs, wanted, files, units, written),
        {},
        _used(costs, wanted),
    )
    return replace(found, money=_money(found))


def _stage(name: str, cost: StageCost, costs: Costs, wanted: Request, units: int, rate: float | None) -> StageEstimate:
    """`rate`: images per second of a GPU as its cores feed it; None: there is no GPU."""
    rows, gpu_seconds, source = _rows(cost, wanted), 0.0, cost.source
    core_seconds = rows * cost.core_seconds
    if cost.source != FROM:  # a run's own seconds hold it
        megabytes = cost.reads_images * wanted.pairs * wanted.image_kb / 1000
        core_seconds += megabytes / costs.constants["read_mb_per_core_second"]
    seconds = core_seconds / wanted.cores
    if cost.images and rate is not None:
        core_seconds = rows * costs.feed(wanted.image_kb)
        gpu_seconds = rows / _rate_of(costs, wanted.card, wanted.model)
        seconds = rows / (rate * wanted.gpus)
        source = costs.cards[wanted.card]["source"]
    hours = (seconds + _driver_seconds(cost, costs, wanted, units)) / 3600
    shuffled = rows * cost.shuffle_bytes / 1e12
    return StageEstimate(name, rows, core_seconds / 3600, gpu_seconds / 3600, hours, shuffled, source)


def _driver_seconds(cost: StageCost, costs: Costs, wanted: Request, units: int) -> float:
    """Beside the tasks."""
    by_unit = units * costs.constants["driver_seconds_per_unit_and_stage"] if cost.per_unit else 0.0
    moves = units * cost.files_of_unit(wanted) if wanted.object_store else 0.0
    return cost.fixed_seconds + by_unit + moves * costs.constants["store_seconds_per_file"]


def _table_bytes(table: TableCost, costs: Costs, wanted: Request) -> float:
    each = table.row_bytes
    if table.images and table.source != FROM:
        each = 1000 * wanted.image_kb + costs.constants["image_row_bytes"]
    if table.vectors and table.source != FROM:
        each += 2 * costs.widths.get(wanted.model, _WIDTH)
    return _rows(table, wanted) * each


def _rows(cost: StageCost | TableCost, wanted: Request) -> float:
    return cost.rows_per * (wanted.entities if cost.per == "entity" else wanted.pairs)


def _used(costs: Costs, wanted: Request) -> dict[str, Mapping[str, str]]:
    """The sources of the figures that were used."""
    costed: list[StageCost | TableCost] = [*costs.stages.values(), *costs.tables.values()]
    names = {c.source for c in costed} | {c.rows_source for c in costed} | {"code"}
    if wanted.gpus:
        names.add(costs.cards[wanted.card]["source"])
    return {name: source for name, source in costs.sources.items() if name in names}


def _requests(costs: Costs, wanted: Request, files: int, units: int, written: float) -> dict[str, float]:
    """To an object store, counted from how the code reads and writes; constants with their reasons in costs.json."""
    of = costs.constants
    images = wanted.rows_per_file * wanted.image_kb / 1000 / of["read_mb_per_get"]
    return {
        "GET": files * (of["gets_per_file"] + 2 * images) + written * of["gets_per_written_file"],
        "PUT": written * of["puts_per_file"],
        "LIST": files / 1000 + units * of["lists_per_unit"],
    }


def _money(found: Estimate) -> dict[str, float]:
    """By what has a price. Cores are paid while the run lasts, GPUs while the images are looked at."""
    wanted, price = found.request, found.request.prices
    scoring = sum(s.hours for s in found.stages if s.gpu_hours)
    storage = sum(found.storage_tb.values())
    asked = {
        "core": wanted.cores * found.hours, "gpu": wanted.gpus * scoring, "tb-month": storage,
        "get": found.requests["GET"] / 1000, "put": (found.requests["PUT"] + found.requests["LIST"]) / 1000,
    }  # fmt: skip
    return {name: amount * price[name] for name, amount in asked.items() if name in price}


def _path(text: str) -> Path:
    return Path(at_home(text))


def add_arguments(parser: Any) -> None:
    parser.add_argument("--pairs", required=True, help="image + alt-text pairs, such as 8.4e9")
    parser.add_argument("--image-kb", default="30", help="mean stored size of an image (default 30)")
    parser.add_argument("--model", default="ViT-L-14", help="the scoring model's architecture (default ViT-L-14)")
    parser.add_argument("--gpus", default="0", help="GPUs of the cluster; 0: the cores run the model (with --from)")
    parser.add_argument("--card", default="H200", help="the kind of GPU, of those that were measured (default H200)")
    parser.add_argument(
        "--cores", default=str(os.cpu_count() or 1), help="cores of the cluster (default: this machine's)"
    )
    parser.add_argument("--price", metavar="core=0.04,gpu=2.0,tb-month=20", help="; ".join(
        f"{name}: {what}" for name, what in PRICES.items()))  # fmt: skip
    parser.add_argument("--entities", default="110e6", help="entities of the dump (default 110e6)")
    parser.add_argument("--rows-per-file", default="10000", help="rows of an input file (default 10,000)")
    parser.add_argument(
        "--store", choices=("object", "disk"), default="object",
        help="where the output lies: an object store copies each file into place, a shared disk renames it",
    )  # fmt: skip
    parser.add_argument("--rows-per-unit", default="1e6", help="rows of a unit (default a million)")
    parser.add_argument(
        "--from", dest="runs", action="append", default=[], type=at_home, metavar="OUT",
        help="take rows, bytes and speed from a finished run's records; several of different sizes fit better",
    )  # fmt: skip
    parser.add_argument("--from-cores", default=str(os.cpu_count() or 1), help="cores that those ran on")
    parser.add_argument("--costs", type=_path, default=COSTS, metavar="FILE", help="another costs.json")


def plan(options: Any) -> Estimate:
    """The command."""
    costs = load(options.costs)
    if options.runs:
        cores = int(_number("--from-cores", options.from_cores, 1))
        costs = fitted(costs, [records(run, list(costs.stages)) for run in options.runs], cores)
    wanted = request(options, costs)
    if not wanted.gpus and not options.runs:
        raise PlanError("--gpus 0: how fast cores run your model, only a run of yours says: name one with --from OUT")
    return estimate(costs, wanted)
