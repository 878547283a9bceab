"""`i2e explain`: the whole way of one image through a run, from its text to its labels or to where it ended.

Reads    the tables, rejects and commit records of an output, whichever stages have come by. Starts no Spark
Writes   nothing, but the context of the knowledge base where no worker has laid it out yet (linking.py)

Rows are found by filters that the files' statistics and columns are read with, and never a table as a whole. What
speaks for candidates and labels is computed again by the stages' own functions, and compared with what the run stored.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.commands.linking import NAMELESS, entities, explained, names_of_group
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.schemas import ID, Reason
from i2e_pipeline.core.secrets import hide
from i2e_pipeline.engine.pipeline import Pipeline
from i2e_pipeline.engine.stage import Run, Stage
from i2e_pipeline.engine.tables import WHOLE, Commit
from i2e_pipeline.extract.stages import read_shards
from i2e_pipeline.inputs.shard import shard_of
from i2e_pipeline.label.calibration import FEATURES, OPTIONAL, CalibrationError
from i2e_pipeline.label.explain import explain_labels
from i2e_pipeline.label.stages import calibration_of
from i2e_pipeline.label.wider import STEPS, WIDER_OF

log = logging.getLogger(__name__)

MOST_PAIRS = 10
"""Pairs of an image, or of a url, that are told in full."""
_LEAST_DIGITS, _UNREAD_SHOWN = 4, 3
_MANY_ROWS = 100_000_000
_PUBLISHED = "i2e/images"
_IMAGES = (_PUBLISHED, "selection", "scores")
"""Tables that name images, the cheapest to search first: the files of the first lie in the order of image_id."""


class NotFound(I2EError):
    """The output holds nothing of what was asked for, or too much."""


def explain(pipeline: Pipeline, asked: str) -> dict[str, Any]:
    """All that an output knows of an image: asked, output, `image` (None: no stage has read it), `pairs`, `notes`.

    asked   the image's id in hex or a prefix of it, a pair's id in hex, the pair's url, or its source's key
    Raises NotFound where no row is that, saying where was looked, or where a prefix means several images.
    """
    return explained_in(opened(pipeline), asked)


def opened(pipeline: Pipeline) -> Run:
    """An output as it lies there. Raises NotFound where no run has made anything there."""
    run = pipeline.as_it_is()
    if not any(run.commits.values()):
        raise NotFound(f"{hide(pipeline.config.output)} holds nothing that a run has made: name its config (--config)")
    return run


def explained_in(run: Run, asked: str, unit: str | None = None) -> dict[str, Any]:
    """`explain` in an output that is open already.

    unit   where the image or pair lies, if that is known. An output that is too large to be looked through for other
           pairs of the same image is then looked into there alone, and a note says so
    """
    search = _Search(run, asked.strip())
    rows = sum(commit.rows("scores") for commit in run.commits[run.writer("scores").name].values())
    if unit is not None and rows > _MANY_ROWS:
        search.within = [unit]
    return _Explanation(search).told(asked)


# --- finding -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    image_id: bytes | None
    pairs: list[tuple[str, bytes]]
    """(unit, pair_id), at most MOST_PAIRS"""
    of: int
    """how many there are"""


@dataclass
class _Search:
    """Where a run's output holds something."""

    run: Run
    asked: str
    looked: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """What could not be looked in, and why."""
    within: list[str] | None = None
    """Units that alone are looked in; None: all."""

    def rows(
        self,
        table: str,
        wanted: pc.Expression,
        columns: Sequence[str] | None = None,
        units: Sequence[str] | None = None,
        most: int | None = None,
    ) -> list[dict[str, Any]]:
        """Rows of a table with their `unit`; none where no stage has written it."""
        names = list(columns) if columns is not None else self.run.tables.catalogue.schema(table).names
        found: list[dict[str, Any]] = self.table(table, wanted, [*names, "unit"], units, most).to_pylist()
        return found

    def table(
        self,
        table: str,
        wanted: pc.Expression,
        columns: Sequence[str],
        units: Sequence[str] | None = None,
        most: int | None = None,
    ) -> pa.Table:
        """The same as a table, of these columns alone: for rows that may be many."""
        units = self.within if units is None else units
        writer = self.run.writer(table)
        made = self.run.commits[writer.name]
        commits = [c for u, c in made.items() if units is None or writer.scope != "unit" or u in units]
        if units is None and sum(c.rows(table) for c in commits) > _MANY_ROWS:
            log.info("looking through %s", table)
        # A stage over everything leaves its rows in their units' folders, or all of them in one.
        only = [*units, WHOLE] if units is not None and writer.scope == "whole" else None
        return self.run.tables.where(table, commits, wanted, columns, only, most)

    def id_in(self, table: str, image_id: bytes) -> pa.Scalar:
        """An image's id as a table has it: a run's own in bytes, the dataset's in hex digits since format 2."""
        commits = self.run.commits[self.run.writer(table).name].values()
        is_text = pa.types.is_string(self.run.tables.as_stored(table, commits).field("image_id").type)
        return pa.scalar(image_id.hex()) if is_text else pa.scalar(image_id, ID)

    def find(self) -> _Found:
        """The image and the pairs that are asked for. Raises NotFound."""
        asked = self.asked
        is_hex = re.fullmatch(r"[0-9a-fA-F]{1,32}", asked) is not None
        # Sources number their pairs: what has no letter is more likely such a number than the beginning of an id.
        by_name_first = not is_hex or asked.isdigit()
        ways = [self._by_name, self._by_image] if by_name_first else [self._by_image, self._by_name]
        for way in ways if is_hex else ways[:1]:
            if (found := way()) is not None:
                return found
        if (found := self._among_rejected_rows()) is not None:
            return found
        unread = f", and not in {'; '.join(self.unread[:_UNREAD_SHOWN])}" if self.unread else ""
        more = f" and that of {len(self.unread) - _UNREAD_SHOWN} units more" if len(self.unread) > _UNREAD_SHOWN else ""
        raise NotFound(
            f"{hide(asked)} is no image id, pair id, url or key in {hide(self.run.tables.root)}; looked in "
            f"{', '.join(self.looked)}{unread}{more}. A url and a key must be written as the source has "
            "them, an id in hex, from its beginning"
        )

    def _by_image(self) -> _Found | None:
        digits = self.asked.lower()
        if len(digits) < _LEAST_DIGITS:
            self.looked.append(f"no images: an id's beginning has {_LEAST_DIGITS} digits at least")
            return None
        for table in _IMAGES:
            low, high = (self.id_in(table, bytes.fromhex(digits.ljust(32, end))) for end in "0f")
            begins = (pc.field("image_id") >= low) & (pc.field("image_id") <= high)
            self.looked.append(f"{table} (image_id)")
            one_an_image = "image_id" in self.run.tables.catalogue.tables[table].key
            rows = self.rows(table, begins, ["image_id"], most=MOST_PAIRS if one_an_image else None)
            ids = sorted({_as_bytes(row["image_id"]) for row in rows})
            if len(ids) > 1:
                some = ", ".join(i.hex()[: len(digits) + 4] + "…" for i in ids[:5])
                raise NotFound(f"{self.asked} begins the ids of several images ({some}): give more digits")
            if ids:
                return self._of_image(ids[0])
        return None

    def _of_image(self, image_id: bytes) -> _Found:
        is_it = pc.field("image_id") == pa.scalar(image_id, ID)
        found = {(r["unit"], r["pair_id"]) for r in self.rows("scores", is_it, ["pair_id"])}
        # The pair that the image is published from comes first.
        standing = {(r["unit"], r["pair_id"]) for r in self.rows("selection", is_it, ["pair_id"])}
        pairs = [*sorted(standing), *sorted(found - standing)]
        return _Found(image_id, pairs[:MOST_PAIRS], len(pairs))

    def _by_name(self) -> _Found | None:
        asked = self.asked
        wanted = (pc.field("url") == asked) | (pc.field("key") == asked)
        if re.fullmatch(r"[0-9a-fA-F]{32}", asked):
            wanted = wanted | (pc.field("pair_id") == pa.scalar(bytes.fromhex(asked), ID))
        self.looked.append("pairs (url, key, pair_id)")
        return self._of_pairs([(r["unit"], r["pair_id"]) for r in self.rows("pairs", wanted, ["pair_id"])])

    def _of_pairs(self, pairs: Sequence[tuple[str, bytes]]) -> _Found | None:
        if not pairs:
            return None
        shown = sorted(pairs)[:MOST_PAIRS]
        is_one = pc.field("pair_id").isin(pa.array([pair for _, pair in shown], ID))
        images = {r["image_id"] for r in self.rows("scores", is_one, ["image_id"], [unit for unit, _ in shown])}
        return _Found(images.pop() if len(images) == 1 else None, shown, len(pairs))

    def _among_rejected_rows(self) -> _Found | None:
        """Rows of the input that did not become pairs: their url and key stand in the input alone."""
        stage, found = self.run.writer("pairs"), []
        self.looked.append(f"the rows that {stage.name} rejected")
        for unit, commit in self.run.commits[stage.name].items():
            if not commit.rejected:
                continue
            if re.fullmatch(r"[0-9a-fA-F]{32}", self.asked):
                wanted = pc.field("id") == pa.scalar(bytes.fromhex(self.asked), ID)
                found += [(unit, r["id"]) for r in self.run.tables.where("rejects", [commit], wanted).to_pylist()]
            else:
                found += self._in_input(unit)
        return self._of_pairs(found)

    def _in_input(self, unit: str) -> list[tuple[str, bytes]]:
        run, pairs = self.run, self.run.config.pairs
        here = next((u for u in run.units if u.name == unit), None)
        if here is None:
            return []
        batch = pa.RecordBatch.from_pydict(
            {
                "shard": pa.array([f.shard for f in here.files], pa.int32()),
                **run.shard_columns(here.files),
                "digest": pa.array([bytes.fromhex(f.digest) for f in here.files], pa.binary()),
                "share_from": pa.array([here.share[0]] * len(here.files), pa.float64()),
                "share_to": pa.array([here.share[1]] * len(here.files), pa.float64()),
            }
        )
        settings, found = shard_of("", "parquet", None, pairs), []
        key, url, text = pairs.key_column, pairs.url_column, pairs.text_column
        try:
            for rows in read_shards(iter([batch]), settings, key, url, text, Counter()):
                is_it = pc.or_kleene(pc.equal(rows.column("url"), self.asked), pc.equal(rows.column("key"), self.asked))
                found += [(unit, pair) for pair in rows.filter(is_it).column("pair_id").to_pylist()]
        except (OSError, I2EError, pa.ArrowException) as error:
            self.unread.append(f"the input of {unit} ({hide(str(error))})")
        return found


# --- telling -------------------------------------------------------------------------------------------------------


class _Explanation:
    def __init__(self, search: _Search) -> None:
        self.search, self.run = search, search.run
        self.notes: list[str] = []

    def told(self, asked: str) -> dict[str, Any]:
        found = self.search.find()
        pairs = [self._pair(unit, pair_id) for unit, pair_id in found.pairs]
        if self.search.within is not None:
            self.notes.append(f"looked for pairs in {', '.join(self.search.within)} alone: the output is large")
        if found.of > len(pairs):
            self.notes.append(f"{found.of:,} pairs are it; {len(pairs)} are told")
        return {
            "asked": hide(asked),
            "output": hide(self.run.tables.root),
            "image": None if found.image_id is None else self._image(found.image_id),
            "pairs": pairs,
            "notes": list(dict.fromkeys(self.notes)),
        }

    # One pair

    def _pair(self, unit: str, pair_id: bytes) -> dict[str, Any]:
        is_pair = pc.field("pair_id") == pa.scalar(pair_id, ID)
        row = _first(self.search.rows("pairs", is_pair, units=[unit]))
        text_id = row["text_id"] if row else None
        steps = self._steps(unit, [i for i in (pair_id, text_id) if i is not None])
        place = row or next((s for s in steps if s["shard"] is not None), {"shard": None, "row": None})
        links = self._links(unit, text_id) if text_id is not None else {"text": None, "mentions": []}
        return {
            "pair_id": pair_id.hex(),
            "unit": unit,
            "key": row and row["key"],
            "url": row and row["url"] and hide(row["url"]),
            "shard": place["shard"],
            "row": place["row"],
            "file": self._file(unit, place["shard"]),
            **links,
            "labels": self._labels(unit, pair_id, text_id) if text_id is not None else [],
            "steps": [{k: v for k, v in s.items() if k not in ("shard", "row")} for s in steps],
            "ended": self._ended(unit, pair_id, steps),
        }

    def _file(self, unit: str, shard: int | None) -> str | None:
        files = [f for u in self.run.units if u.name == unit for f in u.files]
        return next((hide(f.path) for f in files if f.shard == shard), None)

    def _steps(self, unit: str, ids: Sequence[bytes]) -> list[dict[str, Any]]:
        """What stages rejected of these rows, in the stages' order, with the reason and its sentence."""
        tables, steps = self.run.tables, []
        wanted = pc.field("id").isin(pa.array(ids, ID))
        for stage in self._of_pairs():
            commits = self._commits(stage, unit)
            for r in tables.where("rejects", [c for c in commits if c.rejected], wanted).to_pylist():
                steps.append(
                    {
                        "stage": stage.name,
                        "rows_are": stage.rows_are,
                        "reason": r["reason"],
                        "sentence": tables.catalogue.explain(stage.name, r["reason"]),
                        "detail": r["detail"],
                        "start": r["start"],
                        "end": r["end"],
                        "shard": r["shard"],
                        "row": r["row"],
                        "whole_pair": r["id"] == ids[0],
                    }
                )
        return steps

    def _of_pairs(self) -> list[Stage]:
        """The stages that rows of a unit go through."""
        stages = {s.name: s for s in self.run.stages}

        def depends(stage: Stage) -> bool:
            return stage.scope == "unit" or any(depends(stages[name]) for name in stage.after if name in stages)

        return [s for s in self.run.stages if depends(s)]

    def _commits(self, stage: Stage, unit: str) -> list[Commit]:
        made = self.run.commits[stage.name]
        return [c for u, c in made.items() if stage.scope != "unit" or u == unit]

    def _ended(self, unit: str, pair_id: bytes, steps: Sequence[Mapping[str, Any]]) -> str:
        """Where the pair ended, in a line."""
        last = next((s for s in steps if s["whole_pair"]), None)
        if last is not None:
            return f"{last['stage']}: {last['reason']}"
        is_pair = pc.field("pair_id") == pa.scalar(pair_id, ID)
        for row in self.search.rows("selection", is_pair, ["image_id"], [unit]):
            is_image = pc.field("image_id") == self.search.id_in(_PUBLISHED, row["image_id"])
            if self.search.rows(_PUBLISHED, is_image, ["image_id"], [unit]):
                return "published"
        waiting = next((s.name for s in self._of_pairs() if not self._has_seen(s, unit)), None)
        if waiting is None:
            return "left out without a reject: what the stages made does not fit together (`i2e status`, `i2e run`)"
        return f"on its way: {waiting} has not come to unit {unit} yet (`i2e run`)"

    def _has_seen(self, stage: Stage, unit: str) -> bool:
        """Whether what a stage made is of this unit, too."""
        by_unit = {s.name for s in self.run.stages if s.scope == "unit"}
        for commit in self._commits(stage, unit):
            seen = commit.components.get("after", {}).get("units", {}) if stage.scope == "whole" else {}
            if all(unit in units for name, units in seen.items() if name in by_unit):
                return True
        return False

    # Text to candidates

    def _links(self, unit: str, text_id: bytes) -> dict[str, Any]:
        is_text = pc.field("text_id") == pa.scalar(text_id, ID)
        ids, reader = {"text_id": text_id}, self.run.writer("candidates")
        texts = self.search.rows("texts", is_text, ["text_id", "text", "group_id"], [unit])
        text = texts[0]["text"] if texts else None
        mentions = self.search.rows("mentions", is_text, units=[unit])
        mentions = self._narrowed("mentions", reader, unit, ids, mentions)
        if text is None or not mentions or not self._narrowed("texts", reader, unit, ids, texts):
            return {"text": text, "mentions": []}
        run = self._as_made(unit, "candidates")
        told = self._explained(run, unit, texts[0], mentions)
        if unit not in self.run.commits[reader.name]:
            return {"text": text, "mentions": told}
        stored = {
            (r["start"], r["end"], r["entity_id"]): r for r in self.search.rows("candidates", is_text, units=[unit])
        }
        for m in told:
            for c in m["candidates"]:
                row = stored.pop((m["start"], m["end"], c["entity_id"]), None)
                c["stored"] = row and {"probability": row["probability"], "rank": row["rank"]}
                now = None if c["dropped"] else {"probability": float(np.float32(c["probability"])), "rank": c["rank"]}
                self._compare(unit, "candidates", now, c["stored"])
        for row in stored.values():
            self._compare(unit, "candidates", None, row)
        return {"text": text, "mentions": told}

    def _explained(
        self, run: Run, unit: str, row: Mapping[str, Any], mentions: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """What speaks for the candidates of a text's mentions, with the other texts of its group."""
        text_id, group = row["text_id"], row["group_id"]
        if group is None:
            return explained(run, {text_id: row["text"]}, mentions)[text_id]
        # As in the stage a group of any size costs about the same: of its other texts the names alone are read.
        ids = self.search.table("texts", pc.field("group_id") == pa.scalar(group, ID), ["text_id"], [unit])
        in_group = pc.field("text_id").isin(ids.column("text_id").combine_chunks())
        long = pc.match_substring(pc.field("normal_form"), " ")
        forms = self.search.table("mentions", in_group & long, ["normal_form"], [unit])
        names = names_of_group(run, forms.column("normal_form").unique().to_pylist())
        return explained(run, {text_id: row["text"]}, mentions, {text_id: group}, {group: names})[text_id]

    def _as_made(self, unit: str, table: str) -> Run:
        """The run with the fingerprints of the commits of a unit. Notes what has changed since its table was made."""
        made = {s: c[unit] for s, c in self.run.commits.items() if unit in c}
        run = replace(self.run, fingerprints={**self.run.fingerprints, **{s: c.fingerprint for s, c in made.items()}})
        stage = run.writer(table)
        if stage.name in made:
            try:
                changed = stage.changed(run.handed_to(stage), made[stage.name])
            except (KeyError, I2EError) as error:
                changed = [str(error)]
            if changed:
                self.notes.append(
                    f"{table} of {unit} were made otherwise than this config and code would: {'; '.join(changed)}"
                )
        return run

    def _compare(self, unit: str, table: str, now: Any, stored: Any) -> None:
        if now != stored and not (now and stored and all(_same(now[k], stored[k]) for k in now)):
            self.notes.append(f"{table} of {unit}: what is computed now differs from what the run stored")

    # Image to labels

    def _labels(self, unit: str, pair_id: bytes, text_id: bytes) -> list[dict[str, Any]]:
        """Each entity that the pair's image was scored against, with what speaks for it and what became of it."""
        run = self._as_made(unit, "labels")
        reader = run.writer("labels")
        is_pair = pc.field("pair_id") == pa.scalar(pair_id, ID)
        ids = {"pair_id": pair_id, "text_id": text_id}
        seen = ["clip_score", "background_z", "described", *OPTIONAL]
        columns = ["pair_id", "entity_id", "image_id", *seen, "width", "height"]
        scores = self._narrowed("scores", reader, unit, ids, self.search.rows("scores", is_pair, columns, [unit]))
        if not scores:
            return []
        is_text = pc.field("text_id") == pa.scalar(text_id, ID)
        names = ["text_id", "start", "end", "entity_id", "probability"]
        candidates = self.search.rows(run.handed_to(reader).standing("candidates"), is_text, names, [unit])
        candidates = self._narrowed("candidates", reader, unit, ids, candidates)
        config = run.config.label
        if config.wider:
            candidates = [{**c, **dict.fromkeys(pa.schema(_ABOVE).names)} for c in candidates]
            candidates += self._wider(unit, is_text, candidates)
        of_entity = {s["entity_id"]: s for s in scores}
        options = [
            {**of_entity[c["entity_id"]], **c, "text_probability": c["probability"]}
            for c in sorted(candidates, key=lambda c: (c["start"], c["end"], c["entity_id"]))
            if c["entity_id"] in of_entity
        ]
        options = self._with_features(run.handed_to(reader), unit, ids, options)
        try:
            calibration = calibration_of(run.config)
            further = [f for f in calibration.features if f not in FEATURES]
            above = _ABOVE if config.wider else ()
            schema = pa.schema([*_OPTION, *above, *(pa.field(name, pa.float64()) for name in further)])
            table = pa.Table.from_pylist(options, schema=schema)
            told = explain_labels(table, calibration, config.threshold, config.max_labels_per_image)
        except (CalibrationError, ValueError) as error:
            self.notes.append(str(error))
            return []
        stored = {r["entity_id"]: r for r in self.search.rows("labels", is_pair, units=[unit])}
        known = entities(run, {row["entity_id"] for row in told})
        threshold = calibration.threshold if config.threshold is None else config.threshold
        made = unit in run.commits[reader.name]
        labels = []
        for row in told:
            before = stored.pop(row["entity_id"], None)
            about = self._told(run.handed_to(reader), unit, {**ids, "entity_id": row["entity_id"]})
            if made:
                now = {"probability": row["probability"], "reason": row["reason"]}
                self._compare(unit, "labels", now, before and {k: before[k] for k in now})
            labels.append(
                {
                    **{k: row[k] for k in ("entity_id",)},
                    **known.get(row["entity_id"], NAMELESS),
                    **{k: v for k, v in row.items() if k not in ("entity_id", "pair_id", "image_id")},
                    "threshold": threshold,
                    **({"told": about} if about else {}),
                    "stored": before and {k: before[k] for k in ("probability", "reason")},
                }
            )
        for before in stored.values():
            self._compare(unit, "labels", None, before)
        return labels

    def _wider(
        self, unit: str, is_text: pc.Expression, candidates: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """What stands above these candidates, each row with its candidate's probability."""
        below = {(c["start"], c["end"], c["entity_id"]): c["probability"] for c in candidates}
        rows = self.search.rows("wider", is_text, units=[unit])
        places = [(r["start"], r["end"], r["wider_of"]) for r in rows]
        return [{**r, "probability": below[place]} for r, place in zip(rows, places, strict=True) if place in below]

    def _narrowed(
        self, table: str, reader: Stage, unit: str, ids: Mapping[str, bytes], rows: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The rows that stages before the reader have passed on (`Run.read`)."""
        for stage in self.run.narrowing(table, reader):
            passed = {tuple(r[k] for k in r) for r in self._passed_on(stage, unit, ids, ())}
            key = stage.passes.narrows_by if stage.passes is not None else ()
            rows = [r for r in rows if tuple(r[k] for k in key) in passed]
        return rows

    def _told(self, run: Run, unit: str, row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What stages tell of a candidate beside their features, by stage."""
        found = {}
        for stage in run.feature_givers():
            key = stage.passes.key if stage.passes is not None else ()
            ids = {name: value for name, value in row.items() if isinstance(value, bytes)}
            for told in self._passed_on(stage, unit, ids, stage.tells) if stage.tells else ():
                if all(told[k] == row.get(k) for k in key):
                    found[stage.name] = {name: told[name] for name in stage.tells}
        return found

    def _passed_on(
        self, stage: Stage, unit: str, ids: Mapping[str, bytes], columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Keys and further columns of the rows of a pair, or of its text, that a stage passed on."""
        assert stage.passes is not None
        passed = stage.passes
        wanted = pc.scalar(True)
        for name in passed.key:
            if name in ids:
                wanted = wanted & (pc.field(name) == pa.scalar(ids[name], ID))
        if passed.where_null:
            wanted = wanted & pc.field(passed.where_null).is_null()
        rows = self.search.rows(passed.table, wanted, [*passed.narrows_by, *columns], [unit])
        return [{k: v for k, v in r.items() if k != "unit"} for r in rows]

    def _with_features(
        self, run: Run, unit: str, ids: Mapping[str, bytes], options: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """The rows with the columns that stages from outside give (`Run.with_features`)."""
        for stage in run.feature_givers():
            key = stage.passes.key if stage.passes is not None else ()
            given = {
                tuple(r[k] for k in key): {f: r[f] for f in stage.features}
                for r in self._passed_on(stage, unit, ids, stage.features)
            }
            none = dict.fromkeys(stage.features)
            options = [{**o, **given.get(tuple(o[k] for k in key), none)} for o in options]
        return options

    # The image over all its pairs

    def _image(self, image_id: bytes) -> dict[str, Any]:
        is_it = pc.field("image_id") == pa.scalar(image_id, ID)
        selected = _first(self.search.rows("selection", is_it))
        columns = ["url", "alt_text"]
        is_there = pc.field("image_id") == self.search.id_in(_PUBLISHED, image_id)
        published = _first(self.search.rows(_PUBLISHED, is_there, columns, [selected["unit"]])) if selected else None
        size = selected or _first(self.search.rows("scores", is_it, ["width", "height"], most=1))
        is_label = is_it & pc.field("reason").is_null()
        chosen = self.search.rows("labels", is_label, ["pair_id", "image_id", "entity_id", "probability"])
        selecting = self.run.writer("selection")
        if self.run.narrowing("labels", selecting):
            chosen = self._labels_passed_on(image_id, chosen, selecting)
        return {
            "image_id": image_id.hex(),
            "selected": selected is not None,
            "from_pair": selected and selected["pair_id"].hex(),
            "published": published is not None,
            "width": size and size["width"],
            "height": size and size["height"],
            "url": published and published["url"] and hide(published["url"]),
            "alt_text": published and published["alt_text"],
            "labels": self._of_image(chosen, selected),
        }

    def _labels_passed_on(
        self, image_id: bytes, chosen: Sequence[dict[str, Any]], reader: Stage
    ) -> list[dict[str, Any]]:
        """The labels of an image that stages before the reader have passed on, pair by pair."""
        by_pair: dict[tuple[str, bytes], list[dict[str, Any]]] = {}
        for row in chosen:
            by_pair.setdefault((row["unit"], row["pair_id"]), []).append(row)
        passed = []
        for (unit, pair_id), rows in by_pair.items():
            passed += self._narrowed("labels", reader, unit, {"pair_id": pair_id, "image_id": image_id}, rows)
        return passed

    def _of_image(
        self, chosen: Sequence[Mapping[str, Any]], selected: Mapping[str, Any] | None
    ) -> list[dict[str, Any]]:
        """The labels of all pairs of the image, merged, and whether each is published."""
        merged: dict[int, float] = {}
        for row in chosen:
            merged[row["entity_id"]] = max(row["probability"], merged.get(row["entity_id"], 0.0))
        ids = sorted(merged)
        is_one = pc.field("entity_id").isin(ids)
        known = entities(self.run, ids)
        statistics = {r["entity_id"]: r for r in self.search.rows("entity_statistics", is_one) if ids}
        kept = {label["entity_id"]: label for label in (selected["labels"] if selected else ())}
        most, told = self.run.config.label.max_labels_per_image, []
        why = self._why_dropped(
            [] if selected else chosen,
            {e: statistics.get(e, {}) for e in sorted(ids, key=lambda e: (-merged[e], e))[:most] if e not in kept},
            published=selected is not None,
        )
        for place, entity in enumerate(sorted(ids, key=lambda e: (-merged[e], e)), 1):
            of = statistics.get(entity, {})
            told.append(
                {
                    "entity_id": entity,
                    **known.get(entity, NAMELESS),
                    "score": merged[entity],
                    "class_index": kept[entity]["class_index"] if entity in kept else None,
                    "images_of_entity": of.get("images"),
                    "pairs_of_entity": of.get("pairs_labelled"),
                    **self._dropped(entity in kept, "too_many" if place > most else why.get(entity)),
                }
            )
        return told

    def _dropped(self, kept: bool, reason: str | None) -> dict[str, str | None]:
        """Why a label of the image is not published, and the sentence."""
        selecting = self.run.writer("selection").name
        if kept or reason is None or not self.run.commits[selecting]:
            return {"reason": None, "sentence": None}
        if reason == "too_many":
            return {"reason": reason, "sentence": "The image's pairs have more labels than an image may."}
        said = [self.run.tables.catalogue.explain(selecting, one) for one in reason.split(_OR)]
        return {"reason": reason, "sentence": " Or: ".join(said)}

    def _why_dropped(
        self, chosen: Sequence[Mapping[str, Any]], statistics: Mapping[int, Mapping[str, Any]], published: bool
    ) -> dict[int, str]:
        """Reasons of the labels of an image that are not published, by entity.

        chosen      its labels with their pairs, where nothing of the image is published
        statistics  of each entity, as far as there are some
        The image's reject bears the last by name of its labels' reasons, and the draw of `balance_at` keeps or drops
        all labels that are left. Where two are left, the cap may have dropped one of them: of these both are told.
        """
        cap, balance = self.run.config.select.max_images_per_entity, self.run.config.select.balance_at
        rejected = self._selection_rejects(chosen) if chosen else set()
        if rejected and not rejected & set(_DROPPED):
            return dict.fromkeys(statistics, min(rejected))  # a list names the image
        last = max(rejected & set(_DROPPED), default=str(Reason.UNBALANCED))
        by_draw = [
            str(reason)
            for reason, there in ((Reason.OVER_CAP, cap is not None), (Reason.UNBALANCED, balance is not None))
            if there and str(reason) <= last and not (published and reason == Reason.UNBALANCED)
        ]
        rare = {
            entity
            for entity, of in statistics.items()
            if last != str(Reason.OVER_CAP) and not of.get("images")  # a retired entity keeps its class index
        }
        if len(statistics) - len(rare) == 1 and last in by_draw:
            by_draw = [last]
        drawn = _OR.join(by_draw) or str(Reason.OVER_CAP)
        return {entity: str(Reason.RARE_ENTITY) if entity in rare else drawn for entity in statistics}

    def _selection_rejects(self, chosen: Sequence[Mapping[str, Any]]) -> set[str]:
        """What the pairs of an image were rejected for, beside that another pair holds the same image."""
        made = [commit for commit in self.run.commits[self.run.writer("selection").name].values() if commit.rejected]
        is_one = pc.field("id").isin(pa.array(sorted({row["pair_id"] for row in chosen}), ID))
        found = self.run.tables.where("rejects", made, is_one).column("reason").to_pylist() if made else []
        return set(found) - {str(Reason.DUPLICATE_IMAGE)}


_DROPPED = (str(Reason.OVER_CAP), str(Reason.RARE_ENTITY), str(Reason.UNBALANCED))
"""Reasons of labels that the selection drops, by name."""
_OR = " or "
_OPTION = (
    pa.field("pair_id", ID),
    pa.field("image_id", ID),
    pa.field("start", pa.int32()),
    pa.field("end", pa.int32()),
    pa.field("entity_id", pa.int64()),
    pa.field("clip_score", pa.float32()),
    pa.field("background_z", pa.float32()),
    pa.field("described", pa.bool_()),
    *(pa.field(name, pa.float32()) for name in OPTIONAL),
    pa.field("text_probability", pa.float32()),
)
"""What the stage that chooses labels sees of a candidate."""
_ABOVE = (pa.field(WIDER_OF, pa.int64()), pa.field(STEPS, pa.int32()))
"""And with `label.wider` of what stands above one; null of a candidate."""


def _as_bytes(image_id: str | bytes) -> bytes:
    return bytes.fromhex(image_id) if isinstance(image_id, str) else image_id


def _same(a: Any, b: Any) -> bool:
    return bool(a == b or (isinstance(a, float) and isinstance(b, float) and np.float32(a) == np.float32(b)))


def _first(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return rows[0] if rows else None
