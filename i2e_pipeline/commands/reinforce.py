"""`i2e reinforce` and jobs/reinforce.py: the arguments, and who does the work (commands/reinforcing.py)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from i2e_pipeline.core import files
from i2e_pipeline.core.config import Config

if TYPE_CHECKING:  # torch takes seconds to import, and every command has its arguments from here
    from i2e_pipeline.commands.reinforcing import Reinforcement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=files.at_home, metavar="FOLDER", help="a dataset or an output (default: the config's)"
    )
    parser.add_argument(
        "--teacher", action="append", required=True, metavar="MODEL",
        help="an open_clip model with both towers, as score.model; several times: several teachers",
    )  # fmt: skip
    parser.add_argument("--augmentations", type=_positive, default=10, metavar="K", help="of each image (default 10)")
    parser.add_argument(
        "--captioner", metavar="MODEL", help="a model of transformers: local-dir:FOLDER or hf-hub:ORG/NAME"
    )
    parser.add_argument("--captions", type=_positive, default=5, metavar="N", help="of each image (default 5)")
    parser.add_argument("--to", type=files.at_home, metavar="FOLDER", help="default: `reinforced` beside the dataset")
    parser.add_argument("--device", default="auto", help="where models run: auto, cpu, cuda, cuda:1 …")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the models")
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="views per forward pass on a GPU")
    parser.add_argument("--restart", action="store_true", help="forget what other settings have made there")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run(options: argparse.Namespace, config: Config) -> Reinforcement:
    """By this process alone."""
    from i2e_pipeline.commands.reinforcing import asked, reinforce

    dataset, wanted, folder = asked(options, config)
    return reinforce(dataset, wanted, folder, restart=options.restart)


def on_spark(options: argparse.Namespace, config: Config) -> Reinforcement:
    """By the workers of the config's session."""
    from i2e_pipeline.commands.reinforcing import asked, on_workers_of

    dataset, wanted, folder = asked(options, config)
    return on_workers_of(config, dataset, wanted, folder, options.restart)
