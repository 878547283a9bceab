"""How likely a surface means an entity, and how likely it means anything at all.

Reads    names and anchors with what is known of their entities (NAME_ROWS), sorted by normal form and entity
Writes   surfaces (SURFACES)

**Prior.**  p(e | s) = (n(e, s) + mu * w(e, s) / W(s)) / (N(s) + mu), where n counts the anchors with text s that lead
to e, N is their sum over the candidates of s, and W the sum of w: the commonness of Milne & Witten (Learning to Link
with Wikipedia, CIKM 2008) with Dirichlet smoothing (Zhai & Lafferty, TOIS 2004) towards what is known without anchors,

    w(e, s) = kind * exp(fame(e)) * (1 + links)^c
    fame(e) = a ln(1 + pop / ref) + b ln(1 + sitelinks) + d ln(1 + statements) + i [e has an image]

kind is the weight of the best kind of name by which s names e; links is the number of anchors that lead to e under any
text. pop is a popularity on any scale and ref the geometric mean of the popularities that are known (so a scale cancels
out), an unknown popularity counting as `unknown` * ref and not as 0. How the exponents were chosen: `PriorWeights`;
where fame is worked out, and what a dump does not know: `knowledge_base.with_fame`.

**Link probability.** What words, case and kinds say (`base_link_probability`) is the mean of a Beta prior of weight
`anchor_weight`. Where the anchors say how often a text had the name and nobody linked it (`unlinked`, as
`jobs/count_anchors.py` counts it), each link is a success and each occurrence without one a failure: linked / (linked +
unlinked), the keyphraseness of Mihalcea & Csomai (CIKM 2007), who count texts where this counts occurrences; so for any
name but numbers and function words of any language. Where they do not say it, each anchor is a success, and a name
whose guess is below `FIXED` stays there. It decides the gazetteer: at least 0.05 (Yamada et al., ICADL 2016 prune
there); numbers, common words and two letters (`surface.length`, which says what that means in each script) are kept out
there, whatever they reach here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wikidata.common_words import COMMON_WORDS, DAYS_AND_MONTHS, UNITS_AND_TIMES
from wikidata.function_words import ALL_FUNCTION_WORDS
from wikidata.schemas import CANDIDATE, SURFACES
from wikidata.surface import length, singulars

NAME_ROWS = pa.schema(
    [
        pa.field("normal_form", pa.string(), nullable=False),
        pa.field("surface", pa.string(), nullable=False),
        pa.field("entity_id", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),  # anchors with this text to this entity; 0 for names
        pa.field("fame", pa.float64(), nullable=False),  # fame(e) of the entity
        pa.field("links", pa.int64(), nullable=False),  # anchors to this entity under any text
        pa.field("unlinked", pa.int64()),  # times the surface was no link; null: not counted
    ]
)

KINDS: Mapping[str, float] = {
    "label": 1.0,
    "title": 1.0,
    "alias": 0.5,
    "redirect": 0.5,
    "demonym": 0.1,
    "unaccented": 0.6,
    "short": 0.5,
    "surname": 0.5,
    "part": 0.5,
    "given": 0.03,
    "acronym": 0.2,
    "anchor": 0.5,
    "code": 0.3,
}
"""Kinds of names and what each is worth as evidence that a surface means its entity. Others count as "anchor"."""

PARTS = ("surname", "part", "given", "acronym")
"""Kinds that only their capital tells from words, and that many share."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PriorWeights:
    """The weights of the prior.

    The defaults were fitted by maximum likelihood (a conditional logit over the candidates of each span) on
    wikidiverse-train and wikidata-mel-train: anchors were counted on one half of these, spans of the other half were
    asked for, in a knowledge base with as many sitelinks as Wikidata has and, in a second fit, 743,000 obscure
    namesakes. The two fits gave 0.64 and 1.0 for sitelinks, 0.65 and 0.88 for links, 0.34 and 0.5 for popularity.

    Statements and images weigh nothing, because these data cannot tell: 0.06 % of the items have a statement beside
    their classes and 0.04 % an image, and no span has only such candidates. Fitted all the same
    (benchmarks/fame.py), an image weighs -2.3 ± 0.9 in the dump as it is and 1.1 ± 0.9 in the one with sitelinks, by 15
    spans whose candidates differ in it, and statements -0.58 ± 0.09 and -0.91 ± 0.10, which tell the sources of classes
    apart and not entities: obscure ones have more. On a whole dump fit them, and set `knowledge_base.priors`.
    """

    popularity: float = 0.3
    """Exponent a. Larger: the more popular candidate takes more of a surface without anchors."""
    sitelinks: float = 0.75
    """Exponent b."""
    statements: float = 0.0
    """Exponent d."""
    image: float = 0.0
    """Weight i: e^i times as likely with an image (P18)."""
    links: float = 0.75
    """Exponent c."""
    unknown: float = 1.0
    """What an unknown popularity counts as, in units of the reference."""
    smoothing: float = 1.0
    """mu: how many anchors the knowledge without anchors is worth."""
    kinds: Mapping[str, float] = field(default_factory=lambda: dict(KINDS))

    def __post_init__(self) -> None:
        for name in ("popularity", "sitelinks", "statements", "image", "links", "unknown"):
            if getattr(self, name) < 0:
                raise ValueError(f"priors.{name}: {getattr(self, name)} is not allowed (a number >= 0)")
        if self.smoothing <= 0:
            raise ValueError(f"priors.smoothing: {self.smoothing} is not allowed (a number > 0)")


@dataclass(frozen=True)
class SurfaceLimits:
    """What is kept of a surface."""

    max_candidates: int = 20
    """Candidates kept; the priors of the others are lost, so a surface of many has a sum below 1."""
    max_forms: int = 16
    """Raw forms kept, the first in code point order."""
    min_link_probability: float = 0.05
    """The gate of the gazetteer. Lower: more mentions, most of them none."""
    anchor_weight: float = 5.0
    """How many anchors the guess from words, case and kinds is worth."""
    max_group_rows: int = 200_000
    """Rows of one surface held in memory; of a surface with more, candidates that cannot win are folded into a sum."""


WEIGHTS = PriorWeights()
LIMITS = SurfaceLimits()

# Fixed point, so that sums do not depend on the order of the rows.
_SCALE = 1000.0
_MAX_WEIGHT = 1e12


def weights(kinds: Floats, fame: Floats, links: Floats, settings: PriorWeights = WEIGHTS) -> Ints:
    """w(e, s) of the module's formula in thousandths, per row."""
    w = kinds * np.exp(fame) * (1.0 + np.maximum(links, 0.0)) ** settings.links
    return np.clip(np.rint(w * _SCALE), 1.0, _MAX_WEIGHT).astype(np.int64)


def smoothed(counts: Sequence[int], w: Sequence[float], smoothing: float = PriorWeights.smoothing) -> list[float]:
    """p(e | s) of each candidate of one surface from its anchors and its weight; sums to 1. [] for no candidate."""
    total, mass = sum(counts), sum(w)
    if not counts:
        return []
    return [(n + smoothing * x / mass) / (total + smoothing) for n, x in zip(counts, w, strict=True)]


def is_common(form: str) -> bool:
    """Does the normal form consist of function words and common words, in any number, only?

    Text that asks the gazetteer must ask this too: "free" is no "Frees".
    """
    return all(_is_common_word(w) for w in form.split())


def _is_common_word(word: str) -> bool:
    word = word.removesuffix("'s")
    if word in ALL_FUNCTION_WORDS or word in COMMON_WORDS:
        return True
    return any(w in ALL_FUNCTION_WORDS or w in COMMON_WORDS for w in singulars(word))


def is_measure(form: str) -> bool:
    """Is the normal form a number of something, or a date: "60 minute", "10 years", "december 25"?

    Digits and then a unit or a time, or a month and then digits; function words between. Works of such a name
    ("60 Minutes") are found where it is counted how often the name stands in texts and is no link.
    """
    words = [w for w in form.split() if w not in ALL_FUNCTION_WORDS or w in UNITS_AND_TIMES]
    numbers = [w.isdigit() for w in words]
    if not any(numbers) or all(numbers) or not (numbers[0] or words[0] in DAYS_AND_MONTHS):
        return False
    return all(number or word in UNITS_AND_TIMES for number, word in zip(numbers, words, strict=True))


FIXED = 0.04
"""A surface with a guess below this is no mention, whatever anchors say that do not tell how often a text had it and
nobody linked it."""


def base_link_probability(form: str, best_kind: str, forms: Sequence[str]) -> float:
    """How likely an occurrence is a mention, as far as words, case and kind of name tell, in [0, 1].

    0 for numbers, single characters and function words, small for common words, for what is counted (`is_measure`) and
    two letters; more for more words; less for what is only an alias; least for a code, for a surname alone, and for a
    name that only anchors have, in lower case ("the museum"); less for up to four capital letters, which other words
    share once case is folded.
    """
    if len(form) < 2 or not any(map(str.isalpha, form)):
        return 0.0
    words = form.split()
    if len(words) == 1 and (length(form) <= 2 or form in ALL_FUNCTION_WORDS) and any(map(str.isupper, forms)):
        return 0.045
    content = [w for w in words if w not in ALL_FUNCTION_WORDS]
    if not content:
        return 0.0
    if is_measure(form):
        return 0.01
    # "set of 2" is as common as "set"; a capital makes a name of it ("Area 51").
    counted = [w for w in content if not w.isdigit()]
    if len(counted) == 1 < len(content) and is_common(counted[0]) and all(f == f.lower() for f in forms):
        return 0.01
    if is_common(form):
        return 0.15 if len(content) > 1 and best_kind in ("label", "title", "alias") else 0.01
    if length(form) <= 2 or (form[0].isdigit() and len(words) == 1 and len(form) <= 5):
        return 0.02
    if best_kind == "anchor" and len(words) == 1 and all(f.islower() for f in forms):
        return 0.03
    p = {1: 0.3, 2: 0.6}.get(len(words), 0.7)
    if best_kind in PARTS:
        return 0.045
    p *= {"label": 1.0, "title": 1.0, "demonym": 0.5, "code": 0.15}.get(best_kind, 0.7)
    if len(form) <= 4 and len(words) == 1 and all(f.isupper() for f in forms):
        p *= 0.4
    return p


def link_probability(
    base: float,
    anchors: int,
    anchor_weight: float = SurfaceLimits.anchor_weight,
    unlinked: int | None = None,
) -> float:
    """The guess `base`, updated by the anchors and by how often the name was no link.

    unlinked   None: not counted; then a guess below `FIXED` stays as it is
    A guess of 0 stays 0.
    """
    if base <= 0 or (unlinked is None and base < FIXED):
        return base
    return (base * anchor_weight + anchors) / (anchor_weight + anchors + (unlinked or 0))


def surfaces(
    batches: Iterable[pa.RecordBatch],
    settings: PriorWeights = WEIGHTS,
    limits: SurfaceLimits = LIMITS,
) -> Iterator[pa.RecordBatch]:
    """Surface forms with their candidates, priors, link probability and gate.

    batches   NAME_ROWS sorted by (normal_form, entity_id): all rows of one normal form stand together, over batch
              borders too
    yields    SURFACES, in the order of the input
    The result depends on the rows only, not on how batches cut them; memory holds one batch and one surface.
    """
    held: pa.Table | None = None
    rest = _Rest()
    for batch in batches:
        if not batch.num_rows:
            continue
        rows = pa.Table.from_batches([batch.select(NAME_ROWS.names)]).cast(NAME_ROWS)
        if held is not None and held.num_rows:
            rows = pa.concat_tables([held, rows]).combine_chunks()
        starts = _starts(rows.column("normal_form"))
        last = int(starts[-1])
        if last:
            yield _finish(rows.slice(0, last), settings, limits, rest)
            rest = _Rest()
        held = rows.slice(last)
        if held.num_rows > limits.max_group_rows:
            held, rest = _fold(held, settings, limits, rest)
    if held is not None and held.num_rows:
        yield _finish(held, settings, limits, rest)


@dataclass(frozen=True)
class _Rest:
    """What was folded of a surface too large to hold: the weight of its losers, and forms."""

    weight: int = 0
    forms: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidates:
    """One entry per (surface, entity), surfaces numbered from 0 in the order of the rows."""

    group: Ints
    entity: Ints
    weight: Ints
    count: Ints
    kind: npt.NDArray[np.int64]


def _starts(column: pa.ChunkedArray) -> Ints:
    """Where each run of equal values starts."""
    array = column.combine_chunks()
    if len(array) == 1:
        return np.zeros(1, np.int64)
    differs = pc.not_equal(array.slice(1), array.slice(0, len(array) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.flatnonzero(differs) + 1]).astype(np.int64)


def _candidates(rows: pa.Table, group: Ints, settings: PriorWeights) -> _Candidates:
    names = [*KINDS]
    worth = np.array([settings.kinds.get(k, KINDS[k]) for k in names])
    kind = pc.fill_null(pc.index_in(rows.column("kind"), value_set=pa.array(names)), names.index("anchor"))
    kind = kind.to_numpy().astype(np.int64)
    links = rows.column("links").to_numpy().astype(np.float64)
    w = weights(worth[kind], rows.column("fame").to_numpy(), links, settings)
    entity = rows.column("entity_id").to_numpy()
    order = np.lexsort((kind, -w, entity, group))
    g, e = group[order], entity[order]
    first = np.flatnonzero(np.concatenate([[True], (g[1:] != g[:-1]) | (e[1:] != e[:-1])]))
    count = np.add.reduceat(rows.column("count").to_numpy()[order], first)
    return _Candidates(g[first], e[first], w[order][first], count, kind[order][first])


def _fold(held: pa.Table, settings: PriorWeights, limits: SurfaceLimits, rest: _Rest) -> tuple[pa.Table, _Rest]:
    """Keeps of one surface what can still win: entities with anchors, the heaviest without, and the last, which may go
    on.

    Among candidates without anchors the order is that of the weights whatever their sum is, so nothing that could come
    to stand among the first `max_candidates` is lost.
    """
    c = _candidates(held, np.zeros(held.num_rows, np.int64), settings)
    free = np.flatnonzero(c.count == 0)
    heaviest = free[np.lexsort((c.entity[free], -c.weight[free]))][: limits.max_candidates]
    counted = held.column("entity_id").filter(pc.is_valid(held.column("unlinked"))).unique()
    keep = (c.count > 0) | np.isin(c.entity, counted.to_numpy())
    keep[heaviest] = True
    keep[-1] = True
    forms = sorted({*rest.forms, *pc.unique(held.column("surface")).to_pylist()})[: limits.max_forms]
    kept = held.filter(pc.is_in(held.column("entity_id"), value_set=pa.array(c.entity[keep])))
    return kept.combine_chunks(), _Rest(rest.weight + int(c.weight[~keep].sum()), tuple(forms))


def _finish(rows: pa.Table, settings: PriorWeights, limits: SurfaceLimits, rest: _Rest) -> pa.RecordBatch:
    """The surfaces of whole groups; `rest` belongs to the first."""
    rows = rows.combine_chunks()
    starts = _starts(rows.column("normal_form"))
    n = len(starts)
    group = np.repeat(np.arange(n), np.diff(np.append(starts, rows.num_rows)))
    c = _candidates(rows, group, settings)
    first = np.searchsorted(c.group, np.arange(n))
    mass, total = np.add.reduceat(c.weight, first), np.add.reduceat(c.count, first)
    mass[0] += rest.weight
    mu = settings.smoothing
    prior = ((c.count + mu * c.weight / mass[c.group]) / (total[c.group] + mu)).astype(np.float32)

    order = np.lexsort((c.entity, -prior, c.group))
    rank = np.arange(len(order)) - first[c.group[order]]
    order = order[rank < limits.max_candidates]
    kinds = pa.array([*KINDS])
    candidates = pa.StructArray.from_arrays(
        [pa.array(c.entity[order]), pa.array(prior[order]), kinds.take(pa.array(c.kind[order]))], fields=[*CANDIDATE]
    )
    forms, form_offsets = _forms(rows, group, n, limits, rest)
    normal = rows.column("normal_form").combine_chunks().take(pa.array(starts))
    best = np.minimum.reduceat(c.kind, first)  # KINDS stand in falling reliability
    linked, unlinked = _occurrences(rows, starts, group, normal)
    link = _link_probabilities(normal.to_pylist(), best, linked, unlinked, forms, form_offsets, limits)
    return pa.RecordBatch.from_arrays(
        [
            normal,
            pa.ListArray.from_arrays(_offsets(c.group[order], n), candidates),
            pa.array(link.astype(np.float32)),
            pa.ListArray.from_arrays(pa.array(form_offsets, pa.int32()), pa.array(forms, pa.string())),
            pa.array(link >= limits.min_link_probability),
        ],
        schema=SURFACES,
    )


def _offsets(group: Ints, groups: int) -> pa.Array:
    return pa.array(np.searchsorted(group, np.arange(groups + 1)), pa.int32())


def _forms(
    rows: pa.Table, group: Ints, groups: int, limits: SurfaceLimits, rest: _Rest
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct raw forms of each group, sorted, at most `max_forms`, as one list with offsets."""
    table = pa.table({"g": group, "s": rows.column("surface")})
    if rest.forms:
        more = pa.table({"g": np.zeros(len(rest.forms), np.int64), "s": pa.array(rest.forms)})
        table = pa.concat_tables([table, more])
    table = table.group_by(["g", "s"], use_threads=False).aggregate([])
    table = table.sort_by([("g", "ascending"), ("s", "ascending")])
    g = table.column("g").to_numpy()
    first = np.searchsorted(g, np.arange(groups))
    keep = np.arange(len(g)) - first[g] < limits.max_forms
    offsets = np.searchsorted(g[keep], np.arange(groups + 1))
    return table.column("s").filter(pa.array(keep)).to_pylist(), offsets


_FUNCTION_WORDS = pa.array(sorted(ALL_FUNCTION_WORDS))


def _occurrences(rows: pa.Table, starts: Ints, group: Ints, normal: pa.Array) -> tuple[Ints, Ints]:
    """How often each group's names are links, and how often not; -1: not counted.

    normal   the groups' normal forms
    A function word is a name in capitals alone ("US", "IT"), so that only links in capitals speak for it: a song "And"
    makes no name of the emphasis in "Keep calm AND carry on".
    Where it is known of some of a group's rows how often they are no links, links are those rows' alone: both are of
    the same texts.
    Each raw surface has its number once, in whichever of its rows.
    """
    of_function_word = pc.is_in(normal, value_set=_FUNCTION_WORDS).to_numpy(zero_copy_only=False)[group]
    counts = ~of_function_word | pc.utf8_is_upper(rows.column("surface")).to_numpy()
    linked = np.add.reduceat(np.where(counts, rows.column("count").to_numpy(), 0), starts)
    unlinked = np.full(len(starts), -1, np.int64)
    known = pc.and_(pc.is_valid(rows.column("unlinked")), pa.chunked_array([pa.array(counts)]))
    if not pc.any(known).as_py():
        return linked, unlinked
    table = pa.table({"g": group, **{n: rows.column(n) for n in ("surface", "count", "unlinked")}}).filter(known)
    by_surface = table.group_by(["g", "surface"], use_threads=False).aggregate([("count", "sum"), ("unlinked", "max")])
    sums = by_surface.group_by("g", use_threads=False).aggregate([("count_sum", "sum"), ("unlinked_max", "sum")])
    places = sums.column("g").to_numpy()
    linked[places] = sums.column("count_sum_sum").to_numpy()
    unlinked[places] = sums.column("unlinked_max_sum").to_numpy()
    return linked, unlinked


def _link_probabilities(
    normal: Sequence[str],
    kind: Ints,
    linked: Ints,
    unlinked: Ints,
    forms: Sequence[str],
    offsets: npt.NDArray[np.int64],
    limits: SurfaceLimits,
) -> Floats:
    names = [*KINDS]
    link = np.empty(len(normal))
    for i, form in enumerate(normal):
        base = base_link_probability(form, names[kind[i]], forms[offsets[i] : offsets[i + 1]])
        not_linked = None if unlinked[i] < 0 else int(unlinked[i])
        link[i] = link_probability(base, int(linked[i]), limits.anchor_weight, not_linked)
    return link
