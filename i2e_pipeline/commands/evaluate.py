"""What `i2e evaluate` does: measures encoders, or stored vectors, or compares what was measured."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config, EvaluateConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.machine import scratch
from i2e_pipeline.core.model_name import ModelNameError, labelled, parse, split_label
from i2e_pipeline.core.terminal import shown
from i2e_pipeline.evaluate import compare, results

if TYPE_CHECKING:
    from i2e_pipeline.evaluate.task import Head
    from i2e_pipeline.evaluate.top_one import Block


class ArgumentError(I2EError, ValueError):
    """Arguments that do not go together; the message names them and the way out."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[LABEL=]MODEL",
        help="an encoder: local-dir:FOLDER, hf-hub:ORG/NAME, NAME@WEIGHTS, hf:FOLDER, vectors:FOLDER, "
        "train:FOLDER@STEP (a checkpoint; best, latest); MODEL@random for the same one untrained. Several are measured "
        "side by side",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a data set: gpr1200, roxford5k, rparis6k, imagenet, cifar100 … by name, or a folder of your own under "
        "any other",
    )
    parser.add_argument(
        "--suite", action="append", default=[], metavar="A,B", help="only these data sets and protocols"
    )
    parser.add_argument("--json", type=files.at_home, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--vectors", type=files.at_home, metavar="V.npz", help="measure stored vectors, without any model"
    )
    parser.add_argument(
        "--predictions",
        nargs="+",
        default=[],
        type=files.at_home,
        metavar="P.jsonl",
        help="score predictions that somebody made, {data_id, pred_entity_id} a line, without any model",
    )
    parser.add_argument("--protocol", choices=("gpr", "revisited", "oven"), help="of --vectors; oven: of --predictions")
    parser.add_argument(
        "--ground-truth",
        nargs="+",
        default=[],
        type=files.at_home,
        metavar="FILE",
        help="of --protocol revisited the gnd_*.pkl, of oven the annotations of the entity set, the query set, or both",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        type=files.at_home,
        metavar="A.json",
        help="two files of results, or one of several models",
    )


def wants_sample(options: argparse.Namespace) -> bool:
    """Whether the command line names nothing to measure, so that the embedded sample is measured."""
    named = (options.config, options.model, options.data, options.suite)
    return not any((*named, options.vectors, options.predictions, options.compare))


def run(options: argparse.Namespace, config: Callable[[], Config]) -> int:
    """Carry out the command: tables to stdout, progress to the log. Raises I2EErrors that say what to do.

    config   reads or makes the config; not called where none is needed
    """
    _go_together(options)
    if options.compare:
        return _compare(options.compare, options.json)
    if options.vectors:
        truth = next(iter(options.ground_truth), None)
        return _vectors(options.vectors, options.protocol, truth, options.json, config().evaluate)
    if options.predictions:
        return _predictions(options.predictions, options.ground_truth, options.json)
    from i2e_pipeline.evaluate import suite

    asked = _asked(config(), options)
    with _exports() as place:
        told, called, heads = _with_checkpoints(asked, place)
        measured = suite.evaluate(told, called, heads)
    print(shown(results.terminal(measured)), end="")
    differences = [d for d in compare.between(measured) if d.queries]
    if differences:
        print(shown(f"\nagainst {measured.models[0].label}"))
        print(shown(compare.table(differences)), end="")
    folder = suite.folder_of(asked)
    made = (files.join(folder, n) for n in ("results.json", "table.md", "table.csv", "index.html"))
    print(shown("\n" + "\n".join(made)))
    if options.json:
        results.write(options.json, measured)
        print(shown(options.json))
    return 0


def _go_together(options: argparse.Namespace) -> None:
    ways = [way for way in ("vectors", "predictions", "compare") if getattr(options, way)]
    ways += ["model"] if options.model or options.data or options.suite else []
    if len(ways) > 1:
        raise ArgumentError(f"--{' and --'.join(ways)}: one of them at a time")
    if options.vectors and options.protocol not in ("gpr", "revisited"):
        raise ArgumentError(f"--vectors {options.vectors}: say --protocol gpr, or revisited with --ground-truth")
    if options.vectors and len(options.ground_truth) > 1:
        raise ArgumentError(f"--ground-truth: --protocol revisited has one, not {len(options.ground_truth)}")
    if options.predictions and (options.protocol != "oven" or not options.ground_truth):
        raise ArgumentError(
            f"--predictions {' '.join(options.predictions)}: say --protocol oven --ground-truth oven_entity_val.jsonl "
            "oven_query_val.jsonl"
        )
    if options.protocol == "oven" and not options.predictions:
        raise ArgumentError(
            "--protocol oven scores --predictions P --ground-truth R; a model is measured by --model MODEL --data "
            "oven=FOLDER"
        )
    if (options.protocol or options.ground_truth) and not (options.vectors or options.predictions):
        raise ArgumentError(
            "--protocol and --ground-truth belong to --vectors, or to --predictions; with --model, --suite names "
            "protocols"
        )
    if options.compare and len(options.compare) > 2:
        raise ArgumentError(f"--compare takes one file or two, not {len(options.compare)}")


def _asked(config: Config, options: argparse.Namespace) -> Config:
    """The config with what the command line names in place of its own."""
    changed: dict[str, Any] = config.evaluate.model_dump()
    if options.model:
        changed["models"] = tuple(options.model)
    if options.data:
        changed["data"] = dict(_named(pair) for pair in options.data)
        if len(changed["data"]) < len(options.data):
            raise ArgumentError(f"--data: one name twice among {', '.join(options.data)}")
    if options.suite:
        named = (part.strip() for parts in options.suite for part in parts.split(","))
        changed["suite"] = tuple(dict.fromkeys(part for part in named if part))
    return config.model_copy(update={"evaluate": EvaluateConfig.model_validate(changed)})


@contextmanager
def _exports() -> Iterator[Path]:
    """A folder of this command for exports of checkpoints; it goes when the command ends.

    Not the training's: that may be somebody else's, a store, or under way.
    """
    with tempfile.TemporaryDirectory(dir=scratch("exports"), prefix="evaluate-") as folder:
        yield Path(folder)


def _with_checkpoints(config: Config, exports: Path) -> tuple[Config, dict[str, str], dict[str, Head]]:
    """The config with exports of the checkpoints that it names in their place (train:FOLDER@STEP), and by MODEL of an
    export how the checkpoint was named, and its entity head where one is wanted."""
    models, called = list(config.evaluate.models), dict[str, str]()
    heads: dict[str, Head] = {}
    for n, spec in enumerate(models):
        with suppress(ModelNameError):  # of a name that is none, suite.py says more
            label, model = split_label(spec)
            if (named := parse(model)).kind == "train":
                from i2e_pipeline.train.export import export_checkpoint

                place = export_checkpoint(named.model, named.weights or "latest", exports / str(n))
                export = f"local-dir:{place / 'open_clip'}"
                models[n], called[export] = labelled(label, export), model
                if config.evaluate.oven.candidates == "head":
                    heads[export] = partial(_head, named.model, named.weights or "latest")
    told = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"models": tuple(models)})})
    return told, called, heads


def _head(folder: str, which: str) -> Iterator[Block]:
    """The classes of the entity head of a checkpoint, as the candidates that images are compared with."""
    from i2e_pipeline.evaluate.top_one import Block
    from i2e_pipeline.evaluate.vectors import normalised
    from i2e_pipeline.train import checkpoint

    place = checkpoint.find(folder, which)
    for entity_C, weights_CD in checkpoint.load(place).classes_by_entity():
        yield Block(entity_C.numpy(), normalised(weights_CD.float().numpy(), f"the entity head of {place}"))


def _named(pair: str) -> tuple[str, str]:
    name, equals, path = pair.partition("=")
    if not equals or not name or not path:
        raise ArgumentError(f"--data {pair}: write it as NAME=PATH")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ArgumentError(f"--data {pair}: {name!r} is to name files: letters, digits, and . _ - only")
    return name, path


def _vectors(path: str, protocol: str, truth: str | None, json: str | None, settings: EvaluateConfig) -> int:
    from i2e_pipeline.evaluate.from_vectors import measure_vectors

    tree = measure_vectors(path, protocol, truth, settings.block_mb)
    tree["software"] = results.software()
    if json:
        files.write_json(json, tree)
    print(shown(results.terminal(results.of_vectors(Path(json or path).stem, tree))), end="")
    for note in tree["notes"]:
        print(shown(note))
    return 0


def _predictions(paths: Sequence[str], truth: Sequence[str], json: str | None) -> int:
    from i2e_pipeline.evaluate.oven_scores import measure_predictions

    tree = measure_predictions(paths, truth)
    tree["software"] = results.software()
    if json:
        files.write_json(json, tree)
    print(shown(results.terminal(results.of_vectors(Path(json or paths[0]).stem, tree))), end="")
    for note in tree["notes"]:
        print(shown(note))
    return 0


def _compare(paths: Sequence[str], json: str | None) -> int:
    read = [results.read(path) for path in paths]
    if len(read) == 1 and len(read[0].models) < 2:
        raise ArgumentError(f"--compare {paths[0]}: it holds one model; name a second file")
    found = compare.between(read[0]) if len(read) == 1 else compare.compare(read[0], read[1])
    print(shown(compare.table(found)), end="")
    print(
        f"\ndifferences in percentage points; 95 % intervals of {compare.DRAWS:,} paired bootstrap draws of whole "
        "classes (of queries where a protocol has no classes)"
    )
    if json:
        rows = [{**asdict(d), "difference": d.difference, "verdict": d.verdict} for d in found]
        files.write_json(json, {"format_version": results.FORMAT_VERSION, "files": list(paths), "compared": rows})
    return 0
