"""What a run prints when it is done: the funnel, precision and recall against a known truth, where the outputs lie.
And what other commands say in tables."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from i2e_pipeline.commands import diff as comparing
from i2e_pipeline.commands.diffing import compare
from i2e_pipeline.commands.diffing.causes import SENTENCES
from i2e_pipeline.commands.plan import Estimate
from i2e_pipeline.core import files
from i2e_pipeline.core.secrets import hide
from i2e_pipeline.core.terminal import shown
from i2e_pipeline.engine.pipeline import StageState
from i2e_pipeline.engine.tables import Tables
from i2e_pipeline.engine.units import Gone, Unit
from i2e_pipeline.report import quality

if TYPE_CHECKING:
    from i2e_pipeline.commands.count_anchors import Counted
    from i2e_pipeline.commands.diffing.compare import Counts, Differing, Entities
    from i2e_pipeline.commands.diffing.steps import Difference
    from i2e_pipeline.commands.reinforcing import Reinforcement
    from i2e_pipeline.engine.retrying import Tried


class _Console(Console):
    """rich's, but quiet about blanks at the ends of lines and about a pipe that nobody reads, and with no order to the
    terminal in what is said."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(shown(text), **how)

    def print(self, *what: Any, **how: Any) -> None:
        if self.is_terminal:
            super().print(*what, **how)
            return
        with self.capture() as captured:
            super().print(*what, **how)
        self.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))  # cli.py ends quietly


def _console() -> Console:
    # A log file or a pipe has no width: let a line be as long as what it says, unless COLUMNS says how long.
    known = sys.stdout.isatty() or os.environ.get("COLUMNS")
    # In brackets are parts of names, and no markup; figures of a text are no code.
    return _Console(file=sys.stdout, markup=False, highlight=False, width=None if known else 160)


def _table(title: str) -> Table:
    """Rows without a frame, which would cost a fifth of 80 columns."""
    return Table(
        title=hide(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _column(table: Table, heading: str, right: bool = False, breaks: bool = False) -> None:
    table.add_column(heading, justify="right" if right else "left", no_wrap=not breaks, overflow="fold")


def print_funnel(states: Sequence[StageState]) -> None:
    """Of each stage: rows in, out and rejected, seconds and rows/s of the run that made them; below it its reasons."""
    table = _table("What was kept, and why the rest was not")
    _column(table, "stage", breaks=True)
    for heading in ("in", "out", "rejected", "seconds", "rows/s"):
        _column(table, heading, right=True)
    for state in states:
        commits = list(state.done.values())
        rows_in, rejected = sum(c.rows_in for c in commits), _sum([c.rejected for c in commits])
        # Units are worked on side by side: their own seconds add up to more than the stage took.
        took = f"{state.seconds:.1f}" if state.worked else "before"
        speed = f"{rows_in / state.seconds:,.0f}" if state.worked and rows_in and state.seconds else ""
        rows_out = f"{sum(c.rows_out for c in commits):,}"
        out = f"{sum(rejected.values()):,}" if rejected else ""
        table.add_row(f"{state.stage.name} ({state.stage.rows_are})", f"{rows_in:,}", rows_out, out, took, speed)
        for reason, rows in rejected.items():
            table.add_row(f"  {reason}", "", "", f"{rows:,}", "", "", style="dim")
        for what, count in state.stage.told(commits).items() if commits else ():
            table.add_row(f"  {what}", "", f"{count:,}", "", "", "", style="dim")
    _console().print(table)


def print_changes(states: Sequence[StageState]) -> None:
    """What has changed since the older knowledge base, where this run put one in its place."""
    for state in states:
        for commit in state.done.values() if state.worked else ():
            if changes := commit.facts.get("changes"):
                said = ", ".join(f"{entities:,} {change}" for change, entities in changes.items())
                _console().print(f"entities since the {state.stage.name.replace('_', ' ')} before: {said} (kb/changes)")


def print_tried(tried: Sequence[Tried]) -> None:
    """What came of the rows that were tried again."""
    for one in tried:
        rows, rejected = _counted(one.rows), _counted(one.rejected)
        said = (
            f"{one.stage}: {sum(one.rows.values()):,} rows of {one.units:,} units tried again ({rows})" if rows else ""
        )
        outcome = f": {one.passed:,} passed" + (f", rejected: {rejected}" if rejected else "")
        _console().print(f"{said}{outcome}" if rows else f"{one.stage}: no row was rejected for that", highlight=False)


def _counted(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(rows.items(), key=lambda one: (-one[1], one[0])))


def _sum(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for reason, rows in count.items():
            total[reason] = total.get(reason, 0) + rows
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def print_quality(figures: Sequence[dict[str, Any]]) -> None:
    """Precision and recall per stage and slice of the pairs; nothing where no truth is known."""
    if not figures:
        return
    stages = list(dict.fromkeys(f["stage"] for f in figures))
    table = _table("Against the known truth (P precision, R recall), of pairs whose truth is known")
    _column(table, "slice", breaks=True)
    _column(table, "pairs", right=True)
    for stage in stages:
        _column(table, f"{stage}\nP", right=True)
        _column(table, "R", right=True)
    by_slice = {(f["stage"], f["slice"]): f for f in figures}
    column = None
    for name in dict.fromkeys(f["slice"] for f in figures):
        if column not in (None, name.partition(":")[0]):
            table.add_section()
        column = name.partition(":")[0]
        cells = [_share(by_slice[stage, name][k]) for stage in stages for k in ("precision", "recall")]
        table.add_row(name, f"{by_slice[stages[0], name]['pairs']:,}", *cells)
    console = _console()
    console.print(table)
    for stage in stages:
        console.print(f"  {stage}: {by_slice[stage, 'all']['counted']}", style="dim")
    for sentence in quality.sentences(figures):
        console.print(f"  {sentence}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def print_places(tables: Tables, states: Sequence[StageState]) -> None:
    """Where the outputs lie."""
    console = _console()
    if not any(s.worked for s in states):
        console.print("nothing was to do: everything was done before under this config")
    for what, path in (
        ("dataset", tables.path("i2e")),
        ("report", tables.path("report.html")),
        ("rejects", tables.path("rejects")),
        ("knowledge base", files.folder_of(tables.path("kb/surfaces"))),
    ):
        if files.exists(path):
            console.print(f"{what:<15} {hide(path)}", soft_wrap=True)


def status_tree(
    output: str, units: Sequence[Unit], states: Sequence[StageState], gone: Sequence[Gone] = ()
) -> dict[str, Any]:
    """What `i2e status --json` writes: how many units of each stage are done, how many are to do and why, and which
    input files of units are not what they were."""
    return {
        "output": hide(output),
        "units": len(units),
        "pairs": sum(u.rows for u in units),
        "stages": [
            {
                "stage": state.stage.name,
                "done": len(state.done),
                "to_do": len(state.to_do),
                "why": {hide(reason): count for reason, count in sorted(Counter(state.to_do.values()).items())},
            }
            for state in states
        ],
        "gone": [{"unit": one.unit, "path": hide(one.path), "what": one.what} for one in gone],
    }


_GONE_SHOWN = 10


def print_status(output: str, units: Sequence[Unit], states: Sequence[StageState], gone: Sequence[Gone] = ()) -> None:
    tree = status_tree(output, units, states, gone)
    table = _table(f"{output}: {tree['units']} units, {tree['pairs']:,} pairs")
    _column(table, "stage")
    _column(table, "done", right=True)
    _column(table, "to do", right=True)
    _column(table, "why", breaks=True)
    for stage in tree["stages"]:
        table.add_row(stage["stage"], f"{stage['done']:,}", f"{stage['to_do']:,}", "\n".join(stage["why"]))
    console = _console()
    console.print(table)
    if not gone:
        return
    console.print(
        f"\n{len(gone):,} input files that units were read from are not what they were. What was made of them stays; a "
        "stage that needs one again, or finds it changed, stops. Put it back as it was, or leave its unit out: "
        f"`i2e run --forget {gone[0].unit}`"
    )
    for one in gone[:_GONE_SHOWN]:
        console.print(f"  {one.unit}  {hide(str(one))}", soft_wrap=True)
    if len(gone) > _GONE_SHOWN:
        console.print(f"  and {len(gone) - _GONE_SHOWN:,} more; --json names all")


def print_training(found: dict[str, Any]) -> None:
    """What a training came to (outcome.json): held-out figures before and after, and where things lie."""
    table = _table(f"{found['recipe']}, {found['steps']:,} steps")
    for heading in ("held out", "before", "after"):
        _column(table, heading, right=heading != "held out")
    for name, value in found["after"].items():
        table.add_row(name, _share(found["before"].get(name)), _share(value))
    console = _console()
    console.print(table)
    for reason, count in found["skipped"].items():
        console.print(f"could not be decoded: {count:,} times {reason}")
    console.print(f"{'export':<15} {found['export']}\n{'training':<15} {found['folder']}", soft_wrap=True)


def print_reinforcement(found: Reinforcement) -> None:
    """What was stored, and what it takes."""
    settings, console = found.settings, _console()
    console.print(
        f"{found.images:,} images in {found.files:,} files, {found.made:,} of them new, in {found.seconds:,.0f} s: "
        f"{settings.augmentations} augmentations, {settings.captions} captions, vectors of {settings.width} numbers "
        f"({' + '.join(teacher.model for teacher in settings.teachers)})",
        soft_wrap=True,
        markup=False,
    )
    console.print(
        f"{found.bytes / 1e6:,.1f} MB, {found.bytes / max(1, found.images):,.0f} bytes an image with its share of the "
        f"entities; {found.vector_bytes:,} bytes of vectors an image before compression",
        soft_wrap=True,
    )
    for reason, count in found.undecodable.items():
        console.print(f"could not be decoded: {count:,} images {reason}")
    console.print(f"{'reinforced':<15} {found.folder}", soft_wrap=True, markup=False)


def print_anchors(counted: Counted, output: str) -> None:
    """What the pages of each Wikipedia were, and what was written."""
    table = _table("Pages of Wikipedia")
    _column(table, "wiki")
    _column(table, "what", breaks=True)
    _column(table, "pages", right=True)
    for wiki, kinds in counted.pages.items():
        for what, pages in sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])):
            table.add_row(wiki, what, f"{pages:,}")
    console = _console()
    console.print(table)
    console.print(
        f"{counted.links:,} links to articles, {counted.to_items:,} of which lead to an item; {counted.rows:,} rows, "
        f"and {counted.looked_for:,} names looked for in the texts"
    )
    if counted.rejects:
        console.print(f"pages that could not be read: {counted.rejects}")
    console.print(f"anchors: {output} (knowledge_base.anchors)")


def print_plan(found: Estimate) -> None:
    """What a run will cost: a row a stage, then what it stores, asks of the driver and the store, and its price."""
    wanted, console = found.request, _console()
    machines = f"{wanted.cores:,} cores" + (f", {wanted.gpus:,} {wanted.card}" if wanted.gpus else "")
    title = f"{wanted.pairs:,} pairs of {wanted.image_kb:g} KB on {machines}"
    table = _table(title + (f", {wanted.model}" if wanted.gpus else ""))
    _column(table, "stage")
    for heading in ("rows", "core-hours", "GPU-hours", "hours", "shuffle TB"):
        _column(table, heading, right=True)
    _column(table, "known from")
    for stage in found.stages:
        gpu = _amount(stage.gpu_hours) if stage.gpu_hours else ""
        amounts = (_amount(stage.core_hours), gpu, _amount(stage.hours), _amount(stage.shuffle_tb))
        table.add_row(stage.stage, _short(stage.rows), *amounts, stage.source)
    table.add_section()
    sums = (sum(getattr(s, what) for s in found.stages) for what in ("core_hours", "gpu_hours", "hours", "shuffle_tb"))
    table.add_row("all", "", *map(_amount, sums), "")
    console.print(table)
    if found.images_per_second_per_gpu and found.cores_that_feed_a_gpu:
        console.print(
            f"{'a GPU scores':<15} {found.images_per_second_per_gpu:,.0f} images/s; "
            f"{found.cores_that_feed_a_gpu:.0f} cores would keep it busy, it has {wanted.cores / wanted.gpus:.0f}"
        )
    stored = ", ".join(f"{name} {_amount(size)}" for name, size in _largest(found.storage_tb))
    console.print(
        f"{'storage':<15} {_amount(sum(found.storage_tb.values()))} TB ({stored}); input {_amount(found.input_tb)}"
    )
    own = f"{_amount(found.driver_hours)} hours of its own"
    console.print(f"{'driver':<15} {found.driver_gb:,.1f} GB, {own}, {found.units:,} units")
    asked = ", ".join(f"{name} {_short(count)}" for name, count in found.requests.items())
    console.print(f"{'requests':<15} {asked}")
    if found.money:
        parts = ", ".join(f"{name} {value:,.0f}" for name, value in found.money.items())
        console.print(f"{'money':<15} {sum(found.money.values()):,.0f} ({parts}; storage for a month)")
    for name, source in found.sources.items():
        said = ", ".join(source[key] for key in ("what", "date", "command") if key in source)
        console.print(f"  {name}: {source['kind']}: {said}", style="dim")


def _largest(sizes: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(sizes.items(), key=lambda item: -item[1])[:6]


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _short(count: float) -> str:
    return f"{count:,.0f}" if count < 1e6 else f"{count:.2g}".replace("e+0", "e").replace("e+", "e")


def print_difference(found: Difference, top: int) -> None:
    """What `i2e diff` found: how the two datasets were made first, then what differs and why."""
    console = _console()
    for side, of in enumerate(found.sides):
        entities = int(found.entities.live_2E[side].sum())
        said = f"{of.published.rows:,} images, {found.labels_of(side):,} labels, {entities:,} entities"
        console.print(f"{of.letter}  {of.name}: {said}", soft_wrap=True)
    console.print()
    _print_settings(console, found.settings)
    console.print(_in_both(found))
    _print_classes(console, found)
    if (table := _why(found)).row_count:
        console.print()
        console.print(table)
        for cause, sentence in SENTENCES.items():
            if cause in table.columns[0].cells:
                console.print(f"  {cause}: {sentence}", style="dim")
    _print_moves(console, found, max(0, top))
    _print_scores(console, found.counts)
    _print_gains(console, found, max(0, top))
    for note in found.notes:
        console.print(f"note: {note}", style="yellow")


_VALUE = 40
"""Characters of a setting's value that are shown."""
_FINGERPRINTS = "fingerprints."
_SHOWN = 3


def _print_settings(console: Console, settings: Sequence[Differing]) -> None:
    if not settings:
        console.print("Both were made in the same way: no setting, fingerprint or software differs\n")
        return
    of_stages = [one.name.removeprefix(_FINGERPRINTS) for one in settings if one.name.startswith(_FINGERPRINTS)]
    table = _table("How they were made")
    _column(table, "", breaks=True)
    for letter in "AB":
        _column(table, letter, breaks=True)
    for one in settings:
        if one.name.startswith(_FINGERPRINTS):
            continue
        a, b = (one.values.get(side) for side in (0, 1))
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            differing = f"{sum(x != y for x, y in zip(a, b, strict=True))} of them others"
            cells = [f"{len(a)} values", differing]
        else:
            cells = [_setting(one.values[side]) if side in one.values else "(none)" for side in (0, 1)]
        table.add_row(one.name.removeprefix("settings."), *cells)
    if table.row_count:
        console.print(table)
    if of_stages:
        console.print(f"stages with another fingerprint: {', '.join(of_stages)}")
    console.print()


def _setting(value: Any) -> str:
    said = hide(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return said if len(said) <= _VALUE else f"{said[: _VALUE - 1]}…"


def _in_both(found: Difference) -> Table:
    of, counts = found.entities, found.counts
    table = _table("What is in both")
    for heading in ("", "both", "only in A", "only in B"):
        _column(table, heading, right=bool(heading))
    rows = {
        "images": (counts.images_both, *(sum(why.values()) for why in found.why_image)),
        "labels of images in both": (counts.labels_both, *(sum(why.values()) for why in found.why_label)),
        "entities with a class": (int(of.live_2E.all(axis=0).sum()), *of.alone_2E.sum(axis=1).tolist()),
    }
    for name, numbers in rows.items():
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _print_classes(console: Console, found: Difference) -> None:
    of, counts = found.entities, found.counts
    moved_entities = np.flatnonzero(of.moved_E).tolist()
    if moved_entities or found.other_meaning:
        console.print(
            f"WARNING: {len(moved_entities):,} entities have another class index, {found.other_meaning:,} indices mean "
            "another entity: B did not grow from A. Join by entity_id, and train no head of A on B",
            style="bold red",
        )
        for place in moved_entities[:_SHOWN]:
            a, b = of.index_2E[:, place].tolist()
            console.print(f"  Q{of.id_E[place]} {of.name(place)}: {a} in A, {b} in B")
        if len(moved_entities) > _SHOWN:
            console.print(f"  and {len(moved_entities) - _SHOWN:,} more: --json FILE or --out FOLDER has them")
    else:
        console.print("every entity that both know has the same class index")
    if renamed := np.flatnonzero(of.renamed_E).tolist():
        console.print(f"{len(renamed):,} entities have another name: {_renamed(of, renamed[:_SHOWN])}")
    moved = {(x, y): int(n) for (x, y), n in np.ndenumerate(counts.splits) if x != y and n}
    if moved:
        said = (f"{n:,} from {compare.SPLITS[x]} to {compare.SPLITS[y]}" for (x, y), n in moved.items())
        console.print(f"{sum(moved.values()):,} images lie in another split: {', '.join(said)}")


def _renamed(of: Entities, places: Sequence[int]) -> str:
    return ", ".join(f"Q{of.id_E[place]} {of.names[0][place]} → {of.names[1][place]}" for place in places)


def _why(found: Difference) -> Table:
    """Reasons and causes, with how many images, labels and entities of one dataset the other lacks for them."""
    of_entities = [Counter(why.tolist()) for why in found.why_entity]
    kinds = {"images": found.why_image, "labels": found.why_label, "entities": of_entities}
    table = _table("Why the other one has it not")
    _column(table, "\nreason or cause", breaks=True)
    for letter in "AB":
        for kind in kinds:
            _column(table, f"{f'only in {letter}' if kind == 'images' else ''}\n{kind}", right=True)
    total: Counter[str] = Counter()
    for of in kinds.values():
        total.update(of[0])
        total.update(of[1])
    for name, _ in sorted(total.items(), key=lambda one: (-one[1], one[0])):
        counts = [of[side][name] for side in (0, 1) for of in kinds.values()]
        table.add_row(name, *(f"{count:,}" if count else "" for count in counts))
    return table


def _print_moves(console: Console, found: Difference, top: int) -> None:
    counts = found.counts
    if not counts.images_changed:
        return
    console.print()
    console.print(
        f"{counts.images_changed:,} images in both show other entities; {found.images_moved:,} lost one and got another"
    )
    for one, other, reasons in zip("AB", "BA", found.why_moved, strict=True):
        if reasons:
            console.print(f"  why {other} has not the one of {one}: {_counted(reasons)}")
    table = _table("The most frequent moves")
    for heading in ("in A", "in B"):
        _column(table, heading, breaks=True)
    _column(table, "images", right=True)
    of = found.entities
    for a, b, images in found.moves[:top]:
        places = np.searchsorted(of.id_E, [a, b]).tolist()
        table.add_row(*(f"Q{of.id_E[place]} {of.name(place)}" for place in places), f"{images:,}")
    if table.row_count:
        console.print(table)


def _print_scores(console: Console, counts: Counts) -> None:
    same = comparing.unmoved(counts)
    if same == counts.labels_both:
        if same:
            console.print("\nlabels in both have the same scores")
        return
    shares = (f"{float(q):.0%} {value:+.4f}" for q, value in compare.quantiles(counts.differences).items())
    console.print(
        f"\nscores of labels in both: {counts.labels_both - same:,} of {counts.labels_both:,} differ; B − A at "
        f"{', '.join(shares)}"
    )


def _print_gains(console: Console, found: Difference, top: int) -> None:
    of = found.entities
    largest = comparing.changes(of)
    gains = [place for place in largest if of.change_E[place] > 0]
    losses = [place for place in largest if of.change_E[place] < 0]
    if not largest:
        return
    console.print()
    console.print(f"{len(gains):,} entities have more images in B, {len(losses):,} fewer; the largest changes")
    table = _table("Images per entity")
    _column(table, "", breaks=True)
    for heading in ("A", "B", "change"):
        _column(table, heading, right=True)
    for places in (gains[:top], losses[:top]):
        table.add_section()
        for place in places:
            a, b = of.images_2E[:, place].tolist()
            gone = "" if of.live_2E[1, place] else ", no class in B"
            new = "" if of.live_2E[0, place] else ", new"
            table.add_row(f"Q{of.id_E[place]} {of.name(place)}{gone}{new}", f"{a:,}", f"{b:,}", f"{b - a:+,}")
    console.print(table)


def print_links(texts: Sequence[Mapping[str, Any]]) -> None:
    """What `i2e link --explain` found in each text: its mentions and candidates, and what is no mention and why."""
    console = _console()
    for text in texts:
        console.print(f"text {text['id']}: {_quoted(text['text'])}", soft_wrap=True)
        if text["rejected"]:
            console.print(f"  no name is looked for in it: {text['rejected']}")
        _print_mentions(console, text["mentions"])
        for words in text["overlooked"]:
            console.print(f"  {_quoted(words['surface'])} is no mention: {words['why']}", style="dim")
        if not text["mentions"] and not text["rejected"]:
            console.print("  no mention")
        console.print()


def print_explanation(found: Mapping[str, Any]) -> None:
    """What `i2e explain` found: the image, then each of its pairs from text to label."""
    console, image = _console(), found["image"]
    if image is not None:
        stands = "published" if image["published"] else "selected" if image["selected"] else "not published"
        size = f", {image['width']} × {image['height']}" if image["width"] else ""
        console.print(f"image {image['image_id']}{size}: {stands}", soft_wrap=True)
        for label in image["labels"]:
            kept = f"class {label['class_index']}" if label["class_index"] is not None else "not published"
            why = f": {label['reason']}: {label['sentence']}" if label["reason"] else ""
            console.print(f"  {_entity(label)}: {label['score']:.3f}, {kept}{why}")
    for pair in found["pairs"]:
        place = f"row {pair['row']} of {pair['file']}" if pair["file"] else f"unit {pair['unit']}"
        console.print(f"\npair {pair['pair_id']}: {place}", soft_wrap=True)
        for what in ("key", "url"):
            if pair[what]:
                console.print(f"  {what:<6} {pair[what]}", soft_wrap=True)
        if pair["text"] is not None:
            console.print(f"  text   {_quoted(pair['text'])}", soft_wrap=True)
        console.print(f"  ended  {pair['ended']}")
        for step in pair["steps"]:
            where = "" if step["start"] is None else f" [{step['start']}:{step['end']}]"
            detail = f" ({hide(step['detail'])})" if step["detail"] else ""
            console.print(f"  {step['stage']}{where} {step['reason']}: {step['sentence']}{detail}")
        _print_mentions(console, pair["mentions"])
        if pair["labels"]:
            console.print(_labels(pair["labels"]))
    for note in found["notes"]:
        console.print(f"note: {note}", style="yellow")


def _print_mentions(console: Console, mentions: Sequence[Mapping[str, Any]]) -> None:
    for m in mentions:
        seen = f", {m['label']}" if m["label"] else ""
        title = f"[{m['start']}:{m['end']}] {m['surface']} (found by {m['source']}{seen})"
        if m["rejected"]:
            title += f": {m['rejected']}"
        table = _table(title)
        _column(table, "rank", right=True)
        _column(table, "may mean", breaks=True)
        for heading in ("prior", "p", "sum"):
            _column(table, heading, right=True)
        _column(table, "of", breaks=True)
        for c in m["candidates"]:
            of = _contributions(c["features"]) + (f" → {c['dropped']}" if c["dropped"] else "")
            figures = (f"{c['prior']:.4f}", f"{c['probability']:.4f}", f"{c['score']:+.2f}")
            table.add_row(str(c["rank"]), _entity(c), *figures, of, style="dim" if c["dropped"] else "")
        none = m["none"]
        score = "" if none["score"] is None else f"{none['score']:+.2f}"
        table.add_row("", "none of these", "", f"{none['probability']:.4f}", score, "")
        console.print(table)


def _labels(labels: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(f"by text and image; the threshold is {labels[0]['threshold']:.4f}")
    _column(table, "is it", breaks=True)
    for heading in ("CLIP", "z", "text p", "p"):
        _column(table, heading, right=True)
    _column(table, "of", breaks=True)
    for row in labels:
        figures = (row["clip_score"], row["background_z"], row["text_probability"], row["probability"])
        told = f"→ {row['reason']}: {row['sentence']}" if row["reason"] else "→ a label"
        of = f"{_contributions(row['features'])}, bias {row['bias']:+.2f} = {row['score']:+.2f} {told}"
        of += "".join(f"; {stage}: {_said(columns)}" for stage, columns in row.get("told", {}).items())
        above = "" if row.get("wider_of") is None else f" (wider of Q{row['wider_of']})"
        table.add_row(_entity(row) + above, *(f"{value:.3f}" for value in figures), of)
    return table


def _said(columns: Mapping[str, Any]) -> str:
    """What a stage tells of a candidate beside its features."""
    return ", ".join(hide(str(value)) for value in columns.values() if value is not None)


def _contributions(features: Mapping[str, Mapping[str, float]]) -> str:
    """Those that are not 0: `words 2.31 × 0.4 = +0.92`."""
    return ", ".join(
        f"{name} {f['value']:.3g} × {f['weight']:.3g} = {f['contribution']:+.2f}"
        for name, f in features.items()
        if f["contribution"]
    )


def _entity(row: Mapping[str, Any]) -> str:
    described = f": {row['description']}" if row["description"] else ""
    return f"Q{row['entity_id']} {row['name'] or '(not in the knowledge base)'}{described}"


def _quoted(text: Any) -> str:
    return "nothing" if text is None else f"“{text}”"
