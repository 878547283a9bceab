"""Link: how likely does each mention mean each of its candidates?

Reads    one row per text with its mentions and their candidates (LINK_ROWS of candidates.py) · kb/context
Writes   candidates (text_id, start, end, entity_id, prior, probability, rank)
Rejects  no_candidate · below_floor (id = text_id, start, end, detail = surface)

A candidate's probability is a softmax over the mention's candidates and "none of these":

    score(e) = a ln prior + b shared words + c named elsewhere in the text + d its type, by recognizer and caption
               + e spelling
    score(none) = ln nil_weight

The prior is that of the mention's name. Behind a longer name in the text, or in another text of its group, of which the
mention is a part or the initials ("Merkel" after "Angela Merkel"), it is SAME times what the longer name means, and for
the rest its own. The weights were fitted by maximum likelihood on gold links that the priors had not counted (fit.py);
benchmarks/linking.py prints what they gain. Mentions that overlap are linked each by itself: they are alternatives, and
the image decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from i2e_pipeline.core import files
from i2e_pipeline.core.config import LinkConfig
from i2e_pipeline.core.errors import I2EError
from i2e_pipeline.core.rejects import reject
from i2e_pipeline.core.schemas import CANDIDATES, ID, Reason
from i2e_pipeline.link.candidates import shorter_forms
from i2e_pipeline.link.context import Context, tokens
from wikidata.types import TYPES, UNKNOWN

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

_LABELS = sorted({label for type_ in TYPES.all for label in type_.recognized_as})
_STANDS_FOR = np.array([[label in type_.recognized_as for type_ in TYPES.all] + [False] for label in _LABELS])
"""Whether each label of a recognizer stands for each type; the last column is for unknown types."""
_PROPER = np.array([type_.proper for type_ in TYPES.all] + [False])
_SAID_WITH = [np.array(sorted(tokens(" ".join(type_.said_with))), dtype=np.uint64) for type_ in TYPES.all]
"""For each type the hashes of the words that go with it."""
_PARTS = pa.array(["surname", "part", "given", "short"])
"""Kinds of names that are parts of names."""
_WHOLE = pa.array(["label", "title"])


_PERSON = TYPES.code("person")
SAME = 0.85
"""How often a part of a longer name that stands before it means the same: of those annotated in the half of
wikidiverse-train and wikidata-mel-train that the priors had not counted, 10 of 12 (.83). So few leave it open: the 95 %
interval (Wilson) is .55 to .95. Of another text of the group nothing is annotated."""


@dataclass(frozen=True)
class Weights:
    """How much each kind of evidence counts, in natural logarithms of odds."""

    prior: float = 1.1
    """Of ln prior."""
    inflected: float = -2.8
    """Found under the singular of a plural that is a name itself."""
    inflected_lower: float = 1.5
    """The same where the plural is written without a capital."""
    words: float = 0.46
    """Per unit of shared rare words, see `_shared_words`. Scaled by `link.context_weight`."""
    support: float = 2.1
    """Named elsewhere in the text by another name. Scaled by `link.context_weight`."""
    type_agrees: float = 0.0
    """Of a coarse type that the recognizer's label stands for (`recognized_as` in wikidata/types.yaml)."""
    type_disagrees: float = -1.35
    """Of another type than those."""
    said_with: float = 0.12
    """The text has a word that goes with its type: a poster with a film, a map with a town."""
    lower_proper: float = -2.9
    """Its name is a proper one, by type or spelling, and is written without a capital in a text that has capitals."""
    lower_thing: float = 1.6
    """Its name is spelled as a word for things, and the mention has no capital either."""
    lower_part: float = -3.1
    """Written without a capital, and only a part of its name: a surname, a short form."""

    @classmethod
    def load(cls, path: str | None) -> Weights:
        """The weights of a file that `i2e fit-link` wrote; None: those above. Raises WeightsError, naming the file."""
        if path is None:
            return cls()
        try:
            return cls(**{name: float(value) for name, value in json.loads(files.read_bytes(path))["weights"].items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise WeightsError(
                f"link.weights={path} holds no weights ({error!r}): write them with `i2e fit-link`"
            ) from None


class WeightsError(I2EError, ValueError):
    """A file of weights that cannot be used."""


FEATURES = tuple(field.name for field in fields(Weights))


@dataclass(frozen=True)
class Flat:
    """The candidates of a batch, flat: one entry per candidate, mentions and texts by number."""

    mention: I64
    entity: I64
    prior: npt.NDArray[np.float32]
    features: F64  # (candidates, len(FEATURES))


def disambiguate(
    batches: Iterable[pa.RecordBatch], context: Context | None, settings: LinkConfig, weights: Weights = Weights()
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The probability of each candidate of each mention.

    batches   LINK_ROWS: text_id: binary(16), text: string, mentions: list<struct<…, candidates>>
    yields    ("candidates", CANDIDATES) by text, start, end, rank (1: the most probable). The probabilities of a
              mention sum to less than 1; the rest is that of "none of these".
              ("rejects", reason, id = text_id, start, end, detail = surface) for mentions without a candidate.
    A text's links depend on that text, the names in its group, the knowledge base and the settings alone.
    """
    for batch in batches:
        lists = batch.column("mentions")
        mentions = lists.flatten()
        texts = _parents(lists)
        flat = features(batch.column("text"), mentions, texts, context, batch.column("group_names"))
        probability = probabilities(flat, len(mentions), settings, weights)
        starts, ends = (
            mentions.field(name).to_numpy(zero_copy_only=False).astype(np.int64) for name in ("start", "end")
        )
        order, rank = by_rank(flat, probability, len(mentions))
        good = (probability[order] >= settings.min_probability) & (rank <= settings.max_candidates)
        kept, rank = order[good], rank[good]
        of = flat.mention[kept]
        ids = batch.column("text_id").cast(ID)  # Spark has no fixed-size binary
        yield (
            "candidates",
            pa.RecordBatch.from_arrays(
                [
                    ids.take(pa.array(texts[of])),
                    pa.array(starts[of], pa.int32()),
                    pa.array(ends[of], pa.int32()),
                    pa.array(flat.entity[kept], pa.int64()),
                    pa.array(flat.prior[kept], pa.float32()),
                    pa.array(probability[kept], pa.float32()),
                    pa.array(rank, pa.int32()),
                ],
                schema=CANDIDATES,
            ),
        )
        linked, any_candidate = np.zeros(len(mentions), dtype=bool), np.zeros(len(mentions), dtype=bool)
        linked[of] = True
        any_candidate[flat.mention] = True
        refused = np.flatnonzero(~linked)
        if len(refused):
            reasons = np.where(any_candidate[refused], Reason.BELOW_FLOOR.value, Reason.NO_CANDIDATE.value)
            spans = pa.RecordBatch.from_arrays(
                [ids.take(pa.array(texts)), mentions.field("start"), mentions.field("end")],
                names=["text_id", "start", "end"],
            )
            surfaces = mentions.field("surface").take(pa.array(refused))
            yield "rejects", reject(spans, ~linked, reasons.tolist(), surfaces, key="text_id")


def by_rank(flat: Flat, probability: F64, mentions: int) -> tuple[I64, I64]:
    """The candidates by mention and falling probability, and the rank of each in that order (1: the most probable)."""
    order = np.lexsort((flat.entity, -flat.prior, -probability, flat.mention))
    first = np.searchsorted(flat.mention[order], np.arange(mentions))
    return order, np.arange(len(order)) - first[flat.mention[order]] + 1


def in_force(settings: LinkConfig, weights: Weights) -> F64:
    """The weight of each of FEATURES under these settings."""
    w = np.array([getattr(weights, name) for name in FEATURES])
    w[[FEATURES.index("words"), FEATURES.index("support")]] *= settings.context_weight
    return w


def none_score(settings: LinkConfig) -> float:
    """What speaks for "none of these"."""
    return float(np.log(settings.nil_weight)) if settings.nil_weight > 0 else -np.inf


def probabilities(flat: Flat, mentions: int, settings: LinkConfig, weights: Weights) -> F64:
    """Softmax over each mention's candidates and "none of these"; one number per candidate."""
    # Not a matrix product: BLAS may round a row by its place in the batch.
    scores = (flat.features * in_force(settings, weights)).sum(axis=1)
    nil = none_score(settings)
    top = np.full(mentions, nil)
    np.maximum.at(top, flat.mention, scores)
    top = np.where(np.isfinite(top), top, 0.0)
    shares = np.exp(scores - top[flat.mention])
    mass = np.exp(nil - top)
    np.add.at(mass, flat.mention, shares)
    return shares / mass[flat.mention]


def features(
    texts: pa.Array,
    mentions: pa.StructArray,
    text_of: I64,
    context: Context | None,
    group_names: pa.ListArray | None = None,
) -> Flat:
    """What speaks for each candidate: a row of `FEATURES` per candidate of each mention.

    group_names   of each text longer names in its group, as LINK_ROWS has them; None: it is in none
    An entity that a mention has twice, under its form and under its singular, is one candidate: the likelier one.
    """
    lists = mentions.field("candidates")
    candidates = lists.flatten()
    mention = _parents(lists)
    entity = candidates.field("entity_id").to_numpy(zero_copy_only=False).astype(np.int64)
    prior = np.asarray(candidates.field("prior").to_numpy(zero_copy_only=False), dtype=np.float32)
    inflected = np.asarray(candidates.field("inflected").to_numpy(zero_copy_only=False), dtype=bool)
    order = np.lexsort((inflected, entity, mention))
    once = np.ones(len(order), dtype=bool)
    once[1:] = (mention[order][1:] != mention[order][:-1]) | (entity[order][1:] != entity[order][:-1])
    keep = np.sort(order[once])
    mention, entity, prior, inflected = mention[keep], entity[keep], prior[keep], inflected[keep]
    part = pc.is_in(candidates.field("kind"), value_set=_PARTS).to_numpy(zero_copy_only=False)[keep]
    named_mention, named_entity, named_share = named(mentions, text_of, context, group_names)
    at, missing = _places(mention, entity, named_mention, named_entity)
    mention, entity = np.append(mention, named_mention[missing]), np.append(entity, named_entity[missing])
    prior = np.append(prior, np.zeros(missing.sum(), dtype=np.float32))
    inflected, part = (np.append(flags, np.zeros(missing.sum(), dtype=bool)) for flags in (inflected, part))
    same = np.zeros(len(mentions))
    same[named_mention] = SAME
    prior *= (1.0 - same[mention]).astype(np.float32)
    at[missing] = np.arange(len(mention) - missing.sum(), len(mention))
    prior[at] += (SAME * named_share).astype(np.float32)

    surfaces = mentions.field("surface")
    lower = pc.equal(surfaces, pc.utf8_lower(surfaces)).to_numpy(zero_copy_only=False).astype(bool)[mention]
    has_capitals = pc.not_equal(texts, pc.utf8_lower(texts)).to_numpy(zero_copy_only=False).astype(bool)
    rows = context.rows(entity) if context is not None else np.full(len(entity), -1)
    type_ = context.types(rows) if context is not None else np.full(len(entity), UNKNOWN)
    case = context.cases(rows) if context is not None else np.zeros(len(entity))
    label = pc.index_in(mentions.field("label"), value_set=pa.array(_LABELS)).fill_null(-1).to_numpy()[mention]
    known = (label >= 0) & (type_ != UNKNOWN)
    agrees = known & _STANDS_FOR[label, type_]
    columns = {
        "prior": np.log(np.maximum(prior, 1e-6)),
        "inflected": inflected,
        "inflected_lower": inflected & lower,
        "words": _shared_words(texts, surfaces, text_of, mention, rows, context),
        "support": _support(text_of[mention], entity, prior, _codes(mentions.field("normal_form"))[mention]),
        "type_agrees": agrees,
        "type_disagrees": known & ~agrees,
        "said_with": _said_with(texts)[text_of[mention], type_],
        "lower_proper": lower & has_capitals[text_of[mention]] & ((_PROPER[type_] & (case < 1)) | (case == -1)),
        "lower_thing": lower & (case == 1),
        "lower_part": lower & part,
    }
    matrix = np.stack([np.asarray(columns[name], dtype=np.float64) for name in FEATURES], axis=1)
    return Flat(mention, entity, prior, matrix)


def _places(mention: I64, entity: I64, of_mention: I64, of_entity: I64) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Where each (mention, entity) stands among the candidates, and which stand nowhere."""
    _, codes = np.unique(np.concatenate([entity, of_entity]), return_inverse=True)
    keys = mention * (len(codes) + 1) + codes[: len(mention)]
    wanted = of_mention * (len(codes) + 1) + codes[len(mention) :]
    order = np.argsort(keys)
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64), np.ones(len(wanted), dtype=bool)
    found = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return found, keys[found] != wanted


def named(
    mentions: pa.StructArray, text_of: I64, context: Context | None, group_names: pa.ListArray | None
) -> tuple[I64, I64, F64]:
    """Whom each mention means that is a part, or the initials, of a longer name before it in its text or in its group.

    Returns mention, entity and the entity's share of what the longer names mean, 1 together for each mention.
    A longer name counts where it means somebody: of priors that are all 0 nothing follows.
    Parts are people's alone: an apple is not "Fuji apple" for having been called so. Of what has no type, parts count
    where they are no whole name of anything. They have a capital, and initials are in capitals throughout.
    """
    forms = mentions.field("normal_form").dictionary_encode()
    codes = forms.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    vocabulary: list[str] = forms.dictionary.to_pylist()
    lists = mentions.field("candidates")
    candidates = lists.flatten()
    whole = _Longer(
        text_of, codes, _of(mentions, "end"), _offsets(lists), candidates.field("entity_id"), candidates.field("prior")
    )
    parts = [_named_by(whole, vocabulary, vocabulary, mentions, text_of, codes, context)]
    if group_names is not None and len(names := group_names.flatten()):
        in_group = names.field("normal_form").dictionary_encode()
        text = _parents(group_names)
        inner = names.field("candidates")
        longer = _Longer(
            text,
            in_group.indices.to_numpy(zero_copy_only=False).astype(np.int64),
            np.full(len(text), -1, dtype=np.int64),
            _offsets(inner),
            inner.flatten().field("entity_id"),
            inner.flatten().field("prior"),
        )
        others = in_group.dictionary.to_pylist()
        known = {form: code for code, form in enumerate(vocabulary)}
        same = np.array([known.get(form, -1) for form in others], dtype=np.int64)[longer.form]
        size = len(vocabulary) + 1
        here = np.isin(longer.text * size + same, text_of * size + codes)  # what the text says itself is told above
        parts.append(_named_by(longer.only(~here), others, vocabulary, mentions, text_of, codes, context))
    mention, entity, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-value, entity, mention))
    mention, entity, value = mention[order], entity[order], value[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (mention[1:] != mention[:-1]) | (entity[1:] != entity[:-1])
    mention, entity, value = mention[first], entity[first], value[first]
    total = np.bincount(mention, value, len(mentions))[mention]
    meant = total > 0
    return mention[meant], entity[meant], value[meant] / total[meant]


@dataclass(frozen=True)
class _Longer:
    """Names with their candidates, one entry per name: the text that it counts for, its form by number, where it ends
    (-1: in another text), and the candidates from `offsets` on."""

    text: I64
    form: I64
    end: I64
    offsets: tuple[I64, I64]
    entities: pa.Array
    priors: pa.Array

    def only(self, mask: npt.NDArray[np.bool_]) -> _Longer:
        offsets = (self.offsets[0][mask], self.offsets[1][mask])
        return _Longer(self.text[mask], self.form[mask], self.end[mask], offsets, self.entities, self.priors)


def _named_by(
    longer: _Longer,
    forms: list[str],
    vocabulary: list[str],
    mentions: pa.StructArray,
    text_of: I64,
    codes: I64,
    context: Context | None,
) -> tuple[I64, I64, F64]:
    none = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    known = {form: code for code, form in enumerate(vocabulary)}
    edges = [
        (number, known[part], initials)
        for number, form in enumerate(forms)
        for part, initials in shorter_forms(form)
        if part in known
    ]
    if not edges:
        return none
    long_form, short_form, by_initials = (np.array(column) for column in zip(*edges, strict=True))
    # Each name with each of its shorter forms, then with each mention of that form in its text.
    order = np.argsort(longer.form, kind="stable")
    name, edge = _matches(long_form, longer.form, order)
    key = longer.text[name] * len(vocabulary) + short_form[edge]
    of_mention = text_of * len(vocabulary) + codes
    order = np.argsort(of_mention, kind="stable")
    mention, at = _matches(key, of_mention, order)
    name, initials = name[at], by_initials[edge][at]
    # Behind it alone: in "Roosevelt with Eleanor Roosevelt" the first is somebody else. Another text stands before all.
    apart = longer.end[name] <= _of(mentions, "start")[mention]
    surfaces = mentions.field("surface")
    upper = pc.equal(surfaces, pc.utf8_upper(surfaces)).to_numpy(zero_copy_only=False)[mention]
    capital = pc.not_equal(surfaces, pc.utf8_lower(surfaces)).to_numpy(zero_copy_only=False)[mention]
    good = apart & np.where(initials, upper, capital)
    mention, name, initials = mention[good], name[good], initials[good]
    sizes = longer.offsets[1][name] - longer.offsets[0][name]
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    places = pa.array(np.repeat(longer.offsets[0][name], sizes) + within)
    entity = longer.entities.take(places).to_numpy(zero_copy_only=False).astype(np.int64)
    value = longer.priors.take(places).to_numpy(zero_copy_only=False).astype(np.float64)
    mention, initials = np.repeat(mention, sizes), np.repeat(initials, sizes)
    if context is not None:
        type_ = context.types(context.rows(entity))
        kept = initials | (type_ == _PERSON) | ((type_ == UNKNOWN) & ~_whole_names(mentions)[mention])
        mention, entity, value = mention[kept], entity[kept], value[kept]
    return mention, entity, value


def _whole_names(mentions: pa.StructArray) -> npt.NDArray[np.bool_]:
    """Which mentions are spelled like the whole name of something."""
    lists = mentions.field("candidates")
    whole = pc.is_in(lists.flatten().field("kind"), value_set=_WHOLE).to_numpy(zero_copy_only=False)
    return np.bincount(_parents(lists)[whole], minlength=len(lists)) > 0


def _of(mentions: pa.StructArray, name: str) -> I64:
    return np.asarray(mentions.field(name).to_numpy(zero_copy_only=False), dtype=np.int64)


def _matches(wanted: I64, keys: I64, order: I64) -> tuple[I64, I64]:
    """Of each place in `keys` that holds a wanted key: that place, and the place in `wanted`."""
    first, last = (np.searchsorted(keys, wanted, side, sorter=order) for side in ("left", "right"))
    sizes = last - first
    at = np.repeat(np.arange(len(wanted)), sizes)
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.repeat(first, sizes) + within], at


def _offsets(lists: pa.ListArray) -> tuple[I64, I64]:
    """From where to where each list's elements stand in the flattened ones; null lists count as empty."""
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(sizes)
    return ends - sizes, ends


def _shared_words(
    texts: pa.Array, surfaces: pa.Array, text_of: I64, mention: I64, rows: I64, context: Context | None
) -> F64:
    """What text and description have in common: the rarities of the words that stand in both, summed, and divided by
    the root of the description's length. The mention's own words do not count, since every namesake has them."""
    result = np.zeros(len(mention))
    if context is None or not len(mention):
        return result
    place, words = context.words(rows)
    in_text = _pairs(list(map(tokens, texts.to_pylist())))
    own = _pairs(list(map(tokens, surfaces.to_pylist())))
    shared = _holds(in_text, text_of[mention[place]], words) & ~_holds(own, mention[place], words)
    np.add.at(result, place[shared], context.rarity(words[shared]))
    length = np.bincount(place, minlength=len(mention))
    return result / np.sqrt(np.maximum(length, 1))


def _said_with(texts: pa.Array) -> npt.NDArray[np.bool_]:
    """(texts, types + 1): whether the text has a word that goes with the type; the last column is for unknown types."""
    pairs = _pairs(list(map(tokens, texts.to_pylist())))
    has = np.zeros((len(texts), len(_SAID_WITH) + 1), dtype=bool)
    word = pairs & np.uint64(0xFFFFFFFF)
    for code, words in enumerate(_SAID_WITH):
        has[(pairs[np.isin(word, words)] >> np.uint64(32)).astype(np.int64), code] = True
    return has


def _pairs(sets: list[set[int]]) -> npt.NDArray[np.uint64]:
    """(number of the set, element) of all elements, each pair packed into 64 bits, sorted."""
    sizes = np.fromiter(map(len, sets), dtype=np.int64, count=len(sets))
    flat = np.fromiter((t for s in sets for t in s), dtype=np.uint64, count=int(sizes.sum()))
    pairs = (np.repeat(np.arange(len(sets), dtype=np.uint64), sizes) << np.uint64(32)) | flat
    pairs.sort()
    return pairs


def _holds(pairs: npt.NDArray[np.uint64], number: I64, element: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    if not len(pairs):
        return np.zeros(len(number), dtype=bool)
    wanted = (number.astype(np.uint64) << np.uint64(32)) | element.astype(np.uint64)
    places = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    return pairs[places] == wanted


def _support(text: I64, entity: I64, prior: npt.NDArray[np.float32], form: I64) -> F64:
    """How much the other names in the text speak for the entity: the sum of its priors under these, at most 1."""
    if not len(text):
        return np.zeros(0)
    _, entity = np.unique(entity, return_inverse=True)
    _, here = np.unique(text * (int(entity.max()) + 1) + entity, return_inverse=True)
    _, first, same = np.unique(here * (int(form.max()) + 1) + form, return_index=True, return_inverse=True)
    total = np.zeros(int(here.max()) + 1)
    np.add.at(total, here[first], prior[first].astype(np.float64))
    return np.clip(total[here] - prior[first][same], 0.0, 1.0)


def _codes(strings: pa.Array) -> I64:
    return strings.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _parents(lists: pa.ListArray) -> I64:
    """For each element of the flattened lists the number of its list; null lists count as empty."""
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.repeat(np.arange(len(lists)), sizes)
