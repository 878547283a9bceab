"""One frozen, validated tree of settings; a section per stage.

Read from a YAML file and `--set section.key=value` overrides, in that order (core/settings.py says how). Unknown keys
and bad values are refused with the key's path, the value and what is allowed. Paths are relative to the directory the
command is run in; one that begins with `~` lies in a home.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from i2e_pipeline.core import domains, files, machine, model_name, secrets, settings, splits, stores
from i2e_pipeline.core.errors import I2EError, NoSuchFile

log = logging.getLogger(__name__)


class ConfigError(I2EError, ValueError):
    """A setting that is not allowed; the message names its path, the value and what is allowed."""


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _path(value: Any) -> Any:
    if isinstance(value, str):
        stores.refuse_secret(value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("a name that is no UTF-8: rename it, or export LC_ALL=C.UTF-8") from None
        stores.refuse_scheme(value)
        try:
            return files.at_home(value)
        except NoSuchFile as error:
            raise ValueError(str(error)) from None
    return value


def _named(value: str) -> str:
    if not value.strip():
        raise ValueError("an empty name: name a path, or leave the setting out")
    return value


def _device(value: str) -> str:
    machine.card_of(value)
    return value


def _folder(value: str) -> str:
    if stores.scheme_of(value) and stores.QUERY.search(value):
        raise ValueError("a folder whose address ends with options (`?…=…`): give them by storage.options")
    return value


def _checkpoint(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    folder = _path(value.removeprefix("train:"))
    model_name.checkpoint_of(folder)
    return folder


def _server(value: str) -> str:
    if not value:
        return value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no address of a server: write http://HOST:PORT")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("an address with a user, a key or options in it: name the key's variable by api_key_env")
    return value.rstrip("/")


PathText = Annotated[str, AfterValidator(_path)]
"""A path or URI, or a name that may be one."""
Device = Annotated[str, AfterValidator(_device)]
Paths = Annotated[tuple[Annotated[PathText, AfterValidator(_named)], ...], BeforeValidator(_one_or_many)]


class Content:
    """Marks a setting that is a path: what lies there counts for a fingerprint, not where it lies."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return AfterValidator(_path).__get_pydantic_core_schema__(source, handler)


ContentPath = Annotated[str | None, Content()]


def content(path: str) -> str:
    """Names what lies at a path, file or folder. Raises NoSuchFile."""
    return digest([files.fingerprint(f.path) for f in files.find((path,), "")])


class Section(BaseModel):
    """Settings that belong together. A stage's own (`Stage.Settings`) derive from it, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    added_later: ClassVar[tuple[str, ...]] = ()
    """Settings that older outputs do not know. While they have their default they stay out of fingerprints, so that an
    older output has nothing to do."""

    def fingerprint(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """All settings but those left out and secrets, in JSON form. A path marked `Content` stands as a digest of what
        lies there.

        Raises NoSuchFile, naming the setting, where nothing lies at such a path.
        """
        values = self.model_dump(mode="json", exclude=set(leave_out))
        for name, field in type(self).model_fields.items():
            if name not in values:
                continue
            if secrets.is_secret(name) and isinstance(values[name], str):
                del values[name]  # whoever changes a password changes no result
            elif name in self.added_later and getattr(self, name) == field.get_default(call_default_factory=True):
                del values[name]
            elif values[name] is not None and any(isinstance(m, Content) for m in field.metadata):
                try:
                    values[name] = content(values[name])
                except FileNotFoundError as error:
                    raise NoSuchFile(f"{name}: {error}") from None
            else:
                values[name] = secrets.without(values[name], name)
        return values

    def shown(self) -> dict[str, Any]:
        """All settings in JSON form without secrets: what may be printed, and written where others read it."""
        tree: dict[str, Any] = secrets.without(self.model_dump(mode="json"))
        return tree


class StorageConfig(Section):
    format: Literal["parquet", "delta"] = "parquet"
    """How tables are stored. Take delta on object stores, where a folder cannot be renamed in one step."""
    compression: Literal["zstd", "snappy", "none"] = "zstd"
    """Compression of all Parquet files. snappy writes faster, and its files are a third larger. Images are compressed
    already and gain nothing from either."""
    row_group_mb: int = Field(64, ge=1, le=1024)
    """Target size in MB of a row group of published images, before compression. Training reads a row group at a
    time."""
    options: Annotated[dict[str, str], AfterValidator(stores.checked)] = Field(default_factory=dict)
    """How object stores are opened, by pyarrow, Hadoop and delta-rs alike (docs/stores.md): `s3.endpoint`,
    `s3.access_key_id` … Without one of a store, each client takes what its own environment says."""

    def fingerprint(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        return super().fingerprint((*leave_out, "options"))  # how a store is reached changes no result


class GpuExecutor(Section):
    """Executors of their own for the stages that run a model (Spark's stage-level scheduling)."""

    gpus: int = Field(0, ge=0)
    """GPUs of such an executor. A task has one, and the executor's cores divided by their number. 0: all stages run on
    the executors that spark-submit asks for. The cluster must allocate dynamically."""
    cores: int = Field(8, ge=1)
    """Cores of an executor, which decode for its GPUs."""
    memory: str = "8g"
    """Memory of the JVM."""
    overhead: str = "16g"
    """Memory beside the JVM, where Python works: 2 GB a core and what the model takes."""
    discovery: PathText = ""
    """Script on the workers that says which GPUs an executor has. Empty: that of
    `spark.executor.resource.gpu.discoveryScript`."""


class SessionConfig(Section):
    master: str | None = None
    """Spark's master. None: what spark-submit says, else local[*]."""
    driver_memory: str = "2g"
    """Memory of the driver in a local session, where it does the work. Under spark-submit its own setting holds."""
    shuffle_partitions: int | None = Field(None, ge=1)
    """Partitions of a shuffle. None: twice the cores in local mode, Spark's own default on a cluster."""
    jars: PathText | None = None
    """A folder of jars (Delta's, an object store's). None: Delta's jars come from Maven."""
    conf: dict[str, str] = Field(default_factory=dict)
    """Any further Spark property, passed on as it is."""
    shared_folders: Paths = ()
    """Folders that every machine of a cluster sees under the same path (NFS, Lustre, a mounted volume). Models and
    other files below one are read there. Everything else is packed into the output, once, and laid out on each
    machine."""
    gpu_executor: GpuExecutor = GpuExecutor()
    """Executors of their own for the stages that run a model."""


class RunConfig(Section):
    allow_empty: bool = False
    """Go on where a stage passes on nothing, or rejects nearly everything for one reason."""
    waves_in_flight: int = Field(2, ge=1)
    """Waves that a stage works on at the same time. A wave is a Spark job over many units of work; each unit counts as
    soon as it is whole. With two, one wave's tasks fill the cores that the last tasks of another leave."""
    wave_units: int = Field(500, ge=1)
    """Units of work in a wave at most."""
    wave_rows: int = Field(100_000_000, ge=1)
    """Rows in a wave at most; a unit with more is a wave by itself. On a cluster, so many that they fill it."""
    wave_gb: float = Field(10_000.0, gt=0)
    """GB of input files behind a wave at most."""
    wave_minutes: float = Field(20.0, gt=0)
    """Minutes that a wave is meant to last at most. How many rows that is, is known from the stage's waves before; the
    first takes a few tasks for each core."""


Kind = Literal["bool", "int64", "double", "string"]
"""What a column holds that is carried from the input into the dataset."""

_TAKEN = (
    "image_id", "image", "url", "alt_text", "width", "height", "key", "pair_id", "perceptual_hash", "split", "labels",
    "unit",
)  # fmt: skip
"""Columns that the published dataset has in any case (core/schemas.py, IMAGES)."""


def _columns_by_name(value: Any) -> Any:
    """A name, names, or names with what they hold."""
    if isinstance(value, str):
        return {value: None}
    if isinstance(value, list | tuple):
        found: dict[Any, Any] = {}
        for one in value:
            found |= one if isinstance(one, Mapping) else {one: None}
        return found
    return value


def _column_names(value: dict[str, Any]) -> dict[str, Any]:
    low = [name.lower() for name in value]
    for name in value:
        if name.lower() in _TAKEN:
            raise ValueError(
                f"{name}: the dataset has a column of this name in any case; leave it out, or give yours another name"
            )
        if low.count(name.lower()) > 1:
            raise ValueError(f"{name}: Spark and Delta see no difference between capitals and small letters")
        if not name or any(c in " ,;{}()\n\t=.`" for c in name):
            raise ValueError(f"{name!r}: Spark and Delta want column names without blanks and , ; {{ }} ( ) = . `")
    return value


class PairsConfig(Section):
    added_later: ClassVar[tuple[str, ...]] = (
        "sample", "format", "image_root", "captions", "where", "keep_columns", "allow_partial",
        "wider_column", "group_column",
    )  # fmt: skip

    path: Paths = ()
    """Files, folders or globs of image + alt-text pairs (docs/inputs.md). In a glob `*` stays within a folder and `**`
    crosses folders; names that begin with `.` or `_` are passed over. Files that were not there before become new
    units."""
    format: Literal["parquet", "webdataset", "csv", "jsonl", "files"] | None = None
    """What is read of what lies at `path`. None: everything that its name tells. files: images with .txt or .json
    beside them."""
    image_root: Paths = ()
    """Folders or URIs below which images lie that rows name by path; paths count from the first of them. Empty: from
    the folder of the table. What leads out of them is not read."""
    where: str | None = None
    """Which rows are taken at all, by their columns: `similarity >= 0.28 and language in ("en", "de")`
    (docs/inputs.md). The others are rejected as filtered_out. None: all."""
    keep_columns: Annotated[
        dict[str, Kind | None], BeforeValidator(_columns_by_name), AfterValidator(_column_names)
    ] = Field(default_factory=dict)
    """Columns that are carried into the dataset by name: `[license, similarity]`, or with what they hold,
    `{similarity: double}`. Without, a column holds what fits all that the files have (docs/inputs.md)."""
    allow_partial: bool = False
    """Read the shards that are whole of a folder that `i2e fetch` or img2dataset has not filled to the end. Without it,
    such a folder is an error."""
    captions: Literal["first", "join"] = "first"
    """What becomes of a list of captions: the first that is not blank, or all of them, joined by a blank."""
    key_column: str | None = "key"
    """Column of the source's own name for a pair, kept for reference. None: there is none. A file may lack the
    default's."""
    url_column: str | None = "url"
    """Column of the address that the image came from. It is kept with the image; opt-out lists go by it. None: there is
    none. A file may lack the default's."""
    group_column: str | None = None
    """Column that says which texts belong together: the address of their page, or any other key. Where one text of a
    group has "Angela Merkel", "Merkel" in another means her, as far as both are in one unit of work (docs/inputs.md).
    None: each text is alone."""
    text_column: str = "caption"
    """Column of the alt-text. Of tars and folders: a field of a sample's .json, or else its .txt."""
    image_column: str = "jpg"
    """Column of the stored image: bytes, Hugging Face's struct<bytes, path>, or the path of a file. Of tars and
    folders: whichever image a sample has."""
    sample: float = Field(1.0, gt=0, le=1)
    """Share of the rows that is taken, by a hash of the row: 0.001 for a pilot. Raise it later, and the further rows
    become new units beside those that are done."""
    files_per_unit: int | None = Field(None, ge=1)
    """Input files in a unit of work. None: one where there are up to 1,000 files, else as many as hold about a million
    rows."""
    truth_column: str = "truth_qid"
    """Column of what the image shows: "Q42"; "none", no entity of the knowledge base; "not Q42", not that one (or
    several), and more is not known; null, nothing is known. Where files have it, the run reports how right labels are
    (docs/quality.md)."""
    mentioned_column: str = "mentioned_qids"
    """Column of the entities that the text names, a list of ids. Without it there are no figures of mentions and links,
    and recall is not known."""
    wider_column: str = "wider"
    """Column of names of wider things that the image shows too, a list: "dog" where the truth is a breed. A label whose
    entity has such a name is neither right nor wrong. Files may lack it."""
    slice_columns: tuple[str, ...] = ("hand", "colliding")
    """Columns for whose values precision and recall are reported apart, where the files have them (the sample's `hand`
    is the art style of a picture)."""


class FetchConfig(Section):
    """How `i2e fetch` gets the images of a table of addresses (`pairs.path`, `pairs.url_column`, `pairs.text_column`).
    The folder that it fills is then the `pairs.path` of a run."""

    folder: PathText | None = None
    """Folder on this machine that is filled. None: <output>/fetched."""
    output_format: Literal["parquet", "webdataset", "files"] = "parquet"
    """How pairs are stored there."""
    shard_rows: int = Field(10_000, ge=1)
    """Rows of a shard. A fetch that was stopped goes on by shards, and a process has one at a time."""
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "no"
    """no: the bytes as they came. The others are img2dataset's: the longer side becomes `image_size`, with white around
    (border) or without (keep_ratio_largest); the shorter one does (keep_ratio), and the middle is cut out
    (center_crop)."""
    image_size: int = Field(512, ge=16)
    """Side in pixels that `resize_mode` leads to. Smaller images keep their size, unless it is `border` or
    `center_crop`."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """How `resize_mode` stores images; those that need no change and are stored so already stay as they came."""
    encode_quality: int | None = Field(None, ge=0, le=100)
    """Quality of JPEG and WebP; of PNG how hard it is compressed, 0 to 9. None: 95, and 6."""
    min_image_size: int = Field(0, ge=0)
    """Images whose shorter side has fewer pixels are left out."""
    max_aspect_ratio: float | None = Field(None, ge=1)
    """Images whose longer side is more times the shorter one are left out. None: none are."""
    contact: str | None = None
    """Mail address or page by which sites that are asked can reach you; it stands in the User-Agent. It must be set."""
    user_agent: str = Field("i2e", pattern=r"^[\w.-]+$")
    """Name in the User-Agent. Opt-out headers may address it."""
    disallowed_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """Images whose X-Robots-Tag has one of these are not taken. (): all are."""
    blocked_domains: PathText | None = None
    """File of domains, one a line, that are not asked, nor what lies below them. None: all are."""
    allow_private: bool = False
    """Connect to private addresses, too: loopback, a local network, a cloud's metadata service. And use the proxies
    that the environment names, which connect where they will."""
    linked_only: bool = False
    """Fetch only rows whose text leads to an entity (`i2e fetch --linked-only`). The stages of texts run first."""
    processes: int | None = Field(None, ge=1)
    """Processes that fetch, a shard each. None: one per core."""
    threads: int = Field(64, ge=1)
    """Images that a process fetches at a time."""
    timeout: float = Field(10.0, gt=0)
    """Seconds for a connection, and for each piece of an answer."""
    deadline: float = Field(60.0, gt=0)
    """Seconds for an image with all redirects, per try."""
    retries: int = Field(2, ge=0)
    """Further tries where the first failed for what may pass: no answer, a cut one, HTTP 429 or 5xx."""
    max_bytes: int = Field(64_000_000, ge=1)
    """Larger images are not taken."""
    python: PathText | None = None
    """A Python that has img2dataset. None: an environment is made on first use, in ~/.cache/i2e-pipeline/fetch."""


Skip = Literal["scholarly_article", "category", "disambiguation", "list", "template", "wikimedia_page", "name"]


class PriorsConfig(Section):
    """How much each sign weighs in the priors of names (wikidata/priors.py has the formula). None: as fitted there."""

    popularity: float | None = Field(None, ge=0)
    """Exponent of popularity. Larger: the more popular candidate takes more of a name without anchors."""
    sitelinks: float | None = Field(None, ge=0)
    """Exponent of the number of sitelinks."""
    statements: float | None = Field(None, ge=0)
    """Exponent of the number of statements."""
    image: float | None = Field(None, ge=0)
    """Weight of having an image (P18): an entity with one is e^image times as likely."""
    links: float | None = Field(None, ge=0)
    """Exponent of the number of anchors that lead to the entity under any text."""
    unknown: float | None = Field(None, ge=0)
    """What an unknown popularity counts as, in units of the geometric mean of the known ones."""
    smoothing: float | None = Field(None, gt=0)
    """How many anchors of a name the knowledge without anchors is worth."""


class KnowledgeBaseConfig(Section):
    added_later: ClassVar[tuple[str, ...]] = ("allow_partial", "importance", "redirects", "priors")

    path: Annotated[PathText, AfterValidator(_named), AfterValidator(_folder)] | None = None
    """Folder or URI of knowledge bases that several outputs share. One is made there once, named by what it is made of
    and how, and whoever asks for the same reads it. Without `dump` a run takes the one that lies there whole; of
    several, name its folder `surfaces-…`. Settings that are not as by default must then be those that it was made with.
    None: it lies in the output."""
    dump: ContentPath = None
    """Wikidata JSON dump, one entity a line: a file, a folder, or a glob (as in pairs.path). Plain and .bz2 files are
    read by many cores, .gz, .xz and .zst files by one core each."""
    popularity: ContentPath = None
    """CSV of `qid,number`: how popular an item is. For an item that is not in it, this is unknown, not 0. A first row
    that names the columns is passed over."""
    importance: ContentPath = None
    """Nominatim's `wikimedia-importance.csv.gz`: how important an item's Wikipedia pages are, which counts as
    popularity (beside `popularity`, where both are given), and their titles and redirects, which become names, those
    of `languages`. Rows without an item are passed over."""
    anchors: ContentPath = None
    """TSV of `surface, qid, count`: how often texts used this name for this entity. A fourth column `unlinked` says how
    often they had the name and meant nothing by it. `i2e count-anchors` makes such a file of Wikipedia. A first row
    that names the columns is passed over."""
    redirects: ContentPath = None
    """TSV of `from<TAB>into`: ids of items that were merged into others, where the dump has no lines that say it. What
    the other files, and truths of the pairs, say of a merged item counts for its target."""
    allow_partial: bool = False
    """Take what there is of a dump that is damaged, cut short, or of which more than one line in twenty is no entity.
    Without it, such a dump is an error."""
    languages: tuple[str, ...] = ("en", "mul", "en-gb", "en-ca", "en-us")
    """Languages in which an entity's name is looked for, best first. Where it has none in them: the English Wikipedia's
    title, then any label in Latin script."""
    max_candidates: int = Field(20, ge=1, le=100)
    """Entities kept per surface form, those of the highest prior."""
    priors: PriorsConfig = PriorsConfig()
    """Weights of what makes an entity likely."""
    skip: tuple[Skip, ...] = (
        "scholarly_article",
        "category",
        "disambiguation",
        "list",
        "template",
        "wikimedia_page",
        "name",
    )
    """Kinds of items that are left out (wikidata/filters.py). Each goes to rejects under its own reason."""


class ExtractConfig(Section):
    added_later: ClassVar[tuple[str, ...]] = ("profile",)

    recognizer: PathText = "blank"
    """A spaCy pipeline with `ner`, by name or folder. "blank": none, so that the gazetteer alone finds names."""
    gazetteer: bool = True
    """Also look for names of the knowledge base itself, those that pass the gate of extract/gazetteer.py."""
    profile: Literal["full", "fast"] = "full"
    """fast: the recognizer reads only texts whose capitals promise a name that the gazetteer does not hold. Four times
    as fast or more. It loses some 2 % of the known mentions of alt-text, more of captions of news (docs/quality.md)."""
    max_characters: int = Field(1000, ge=16)
    """Longer texts are cut, at the end of a word, before mentions are looked for."""
    batch_size: int = Field(256, ge=1)
    """Texts that spaCy is given in one call."""
    min_link_probability: float = Field(0.05, ge=0, le=1)
    """A name stays out of the gazetteer if it is less likely than this to be a mention where it occurs in a text."""
    max_mentions: int = Field(32, ge=1)
    """Mentions kept per text, the longest first. A list of a hundred names is spam, not a description."""

    @model_validator(mode="after")
    def _fast_goes_by_the_gazetteer(self) -> ExtractConfig:
        if self.profile == "fast" and not self.gazetteer:
            raise ValueError("profile: fast goes by what the gazetteer finds, and gazetteer is off: turn it on")
        return self


class RerankerConfig(Section):
    """A second look, by a neural model, at the mentions that linking is unsure of (docs/second-look.md)."""

    model: ContentPath = None
    """Folder that `i2e reranker train` wrote. None: no mention is looked at again."""
    margin: float = Field(0.6, gt=0, le=1)
    """Mentions are unsure whose two most probable candidates are less than this apart."""
    budget: float = Field(0.25, ge=0, le=1)
    """Share of a unit's mentions that are looked at again at most: of the unsure ones those of the smallest margins."""
    device: Device = "auto"
    """Where the model runs. auto: cuda where the executor has a GPU, else cpu."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model."""
    batch_size: int = Field(16, ge=1)
    """Mentions per forward pass. A GPU takes hundreds."""


class LinkConfig(Section):
    added_later: ClassVar[tuple[str, ...]] = ("weights", "reranker")

    max_candidates: int = Field(8, ge=1, le=100)
    """Candidates kept per mention, the most probable ones."""
    min_probability: float = Field(0.0005, ge=0, le=1)
    """Candidates less probable than this are dropped. A mention that has none left is rejected as below_floor."""
    context_weight: float = Field(1.0, ge=0)
    """How much the text around a mention counts, compared with the prior of its name. 0: the prior alone counts."""
    nil_weight: float = Field(0.05, ge=0)
    """Weight of "none of these" among the candidates of a mention; a candidate of prior 1 has the weight 1."""
    weights: ContentPath = None
    """JSON file that `i2e fit-link` wrote: how much each kind of evidence counts. None: the weights of
    link/disambiguate.py, which were fitted on captions of news and of persons."""
    reranker: RerankerConfig = Field(default_factory=RerankerConfig)
    """A second look at what linking is unsure of; off by default."""

    def fingerprint(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        values = super().fingerprint(leave_out)
        if "reranker" in values:
            del values["reranker"]
            if self.reranker.model is not None and "reranker" not in leave_out:
                values["reranker"] = self.reranker.fingerprint()
        return values


class ImageLimits(Section):
    """Which images are worth decoding."""

    max_pixels: int = Field(50_000_000, ge=1)
    """Images of more pixels are rejected before they are decoded (decompression bombs)."""
    min_side: int = Field(16, ge=1)
    """Images with a side of fewer pixels are rejected."""
    max_aspect: float = Field(10.0, ge=1)
    """Images are rejected if one side is more than this many times as long as the other."""
    max_bytes: int = Field(64_000_000, ge=1)
    """Larger stored images are rejected without being read."""


class ModelConfig(Section):
    """An image–text model and how it is run."""

    section: ClassVar[str] = "score"
    """The section that messages name for these settings."""
    model: str = ""
    """An open_clip model: NAME@WEIGHTS, local-dir:FOLDER or hf-hub:ORG/NAME (core/model_name.py has the grammar)."""
    pretrained: PathText | None = None
    """WEIGHTS, where `model` holds NAME alone: open_clip's tag, or a file."""
    device: Device = "auto"
    """Where the model runs. auto: cuda where the executor has a GPU, else cpu. The executor chooses, not the driver."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model. bfloat16 is at least twice as fast, and scores move by some 0.005."""
    batch_size: int = Field(64, ge=1)
    """Images per forward pass on a GPU; halved by itself when the GPU's memory runs out. A CPU takes 8 at a time."""

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: Any) -> Any:
        return model_name.two_fields(values, untrained=False)


class ScoreConfig(ModelConfig, ImageLimits):
    added_later: ClassVar[tuple[str, ...]] = ("name_template", "description_template", "type_exemplars", "vocabulary")

    text_template: str = "{name}, {description}"
    """The text by which the model is told an entity. An entity without a description is told by its name alone."""
    name_template: str = "{name}"
    """The text by which the model is told the name alone. How much better the image fits the name with its description
    tells its sense from those of its namesakes."""
    description_template: str = "{description}"
    """The text by which the model is told what the entity is, without its name."""
    type_exemplars: int = Field(128, ge=0)
    """Entities that stand for a coarse type (person, place, taxon …), the most famous ones with a description. An image
    is of the types whose exemplars it fits best. 0: nothing is told of types."""
    vocabulary: int = Field(128, ge=0)
    """Entities of each coarse type that an image is held against besides its candidates, the most famous ones with a
    description: a label is doubted where the image fits one of them better. It helps as far as they hold what the
    images show; of a whole Wikidata, several thousand. 0: an image is held against its candidates alone."""
    rows_per_task: int = Field(16_384, ge=1)
    """Rows that a task scores at most: a part of a large input file, or several small files."""
    background_entities: int = Field(256, ge=2)
    """Number of entities that stand for "anything". The image's cosine to a candidate is also given in standard
    deviations above its mean cosine to these."""
    decode_threads: int = Field(1, ge=1)
    """Threads that decode images while the model works. A GPU needs several; set `spark.task.cpus` to the same."""
    keep_vectors: bool = True
    """Store the vectors of encoded images (float16; `i2e plan` says their bytes) in `image_vectors`: when links have
    changed, no image is encoded again. Distillation and near-duplicate search read them, too."""


class LabelConfig(Section):
    added_later: ClassVar[tuple[str, ...]] = ("wider",)

    calibration: PathText | None = None
    """JSON file that `i2e calibrate` wrote. It says how probable a label is, given CLIP score and text probability, and
    holds the threshold. None: the default of label/calibration.py; docs/quality.md says what that was fitted on."""
    threshold: float | None = Field(None, ge=0, le=1)
    """Labels that are less likely to be right than this are rejected. None: the threshold of the calibration. A higher
    one gives fewer labels, of which more are right."""
    max_labels_per_image: int = Field(4, ge=1)
    """Labels of an image at most. A further label is kept only if it is nearly as probable as the first."""
    wider: bool = False
    """An image that gets no label by what its text names may get a wider one: what stands above a candidate by P279,
    P171 or P31 (a dog, for a breed that the image does not tell), where the image agrees. More entities are scored, and
    a change of it scores all images again. docs/quality.md says what it brings."""


class VerifyConfig(Section):
    """A multimodal model that is shown an image and its candidates, and says which of them it shows, if any
    (docs/second-look.md). Off while neither `model` nor `server` is set."""

    model: str = ""
    """An image-text-to-text model of transformers, run by the workers: local-dir:FOLDER or hf-hub:ORG/NAME, the latter
    with @REVISION where its branch may come to mean other weights."""
    server: Annotated[str, AfterValidator(_server)] = ""
    """Address of a server that speaks OpenAI's protocol (vLLM and others), as http://host:8000; in the place of
    `model`. Images and texts are sent there."""
    served_model: str = ""
    """Name by which the server knows its model."""
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$")
    """Name of the environment variable, of the workers, that holds the server's key. None: it wants none."""
    low: float = Field(0.2, ge=0, le=1)
    """Pairs whose best candidate is less likely than this, by text and image, are not asked about."""
    high: float = Field(0.95, ge=0, le=1)
    """Nor are those whose best candidate is more likely than this."""
    budget: float = Field(0.25, ge=0, le=1)
    """Share of a unit's scored pairs that is asked about at most: of those in the band the least sure ones, whose best
    candidate's probability is nearest to one half."""
    candidates: int = Field(6, ge=1, le=50)
    """Candidates that a question shows at most, the most probable ones."""
    prompt: ContentPath = None
    """File of the question's text with {text}, {candidates} and {form} in it. None: verify/prompt.txt of the
    package."""
    reason: bool = False
    """Ask for a short reason, too. It is stored beside the verdict; answers take several times as long."""
    reliability: float = Field(0.85, gt=0.5, lt=1)
    """How often a verdict about a candidate is right. It is given, not fitted, and counts where the calibration does
    not weigh verdicts by itself: r gives a chosen candidate r / (1 - r) times its odds, another one the inverse."""
    max_side: int = Field(672, ge=32)
    """Longer side in pixels at most to which images are scaled down before they are shown."""
    max_tokens: int = Field(96, ge=1)
    """Tokens of an answer at most."""
    batch_size: int = Field(8, ge=1)
    """Questions per forward pass of `model`; halved by itself when the GPU's memory runs out."""
    device: Device = "auto"
    """Where `model` runs. auto: cuda where the executor has a GPU, else cpu."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of `model`."""
    rows_per_task: int = Field(16_384, ge=1)
    """Rows of the input whose questions a task asks at most."""
    requests: int = Field(16, ge=1)
    """Questions that a task has the server answer at a time."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds for an answer of the server, from the connection to the last byte."""
    retries: int = Field(5, ge=0)
    """Further tries where a request failed for what may pass: no connection, no answer in time, HTTP 429 or 5xx, a
    reply that cannot be read."""
    backoff_s: float = Field(1.0, gt=0)
    """Seconds before the second try, doubled with each further one up to a minute. A server's Retry-After counts where
    it is longer, up to five minutes."""
    max_failed: float = Field(0.1, ge=0, le=1)
    """Share of a task's questions that may stay without an answer after all tries. With more, the unit fails, and the
    next run asks again."""

    @model_validator(mode="after")
    def _one_of_both(self) -> VerifyConfig:
        if self.model and self.server:
            raise ValueError("model and server are both set: leave one out")
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is more than high ({self.high:g})")
        if self.model and model_name.parse(self.model).kind not in ("local-dir", "hf-hub"):
            raise ValueError(
                f"model: {self.model} is none that transformers loads: local-dir:FOLDER or hf-hub:ORG/NAME"
            )
        return self

    @property
    def on(self) -> bool:
        """Whether there is somebody to ask."""
        return bool(self.model or self.server)


CODE = re.compile(r"(?P<place>.+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
"""path/file.py:name or package.module:name."""


class PolicyHead(Section):
    """A head: what it reads of an image's vector, and which images it leaves out."""

    reason: Literal["person_photo", "unsafe", "watermark", "low_aesthetic", "unwanted"]
    """The reason with which images are rejected."""
    head: Annotated[PathText, AfterValidator(_named)]
    """A file of `i2e head train`; or, as package.module:function or path/file.py:function, one of your own that takes
    float32 vectors (images, width) and gives a number for each."""
    threshold: float | None = None
    """Images whose number is this or more are left out; of low_aesthetic those whose number is less. None: the file's
    own; a function has none."""
    model: str = ""
    """The model whose vectors it reads, as in `score.model`; such a model looks at each labelled image. Empty: that of
    `score`, whose vectors are stored."""

    @property
    def is_code(self) -> bool:
        return CODE.fullmatch(self.head) is not None

    @model_validator(mode="after")
    def _function_with_threshold(self) -> PolicyHead:
        if self.is_code and self.threshold is None:
            raise ValueError(f"head: {self.head} is a function, which has no threshold of its own: set threshold")
        return self

    def encoder(self, score: ModelConfig) -> ModelConfig:
        """The model whose vectors it reads, run as that of `score` is."""
        if not self.model:
            return score
        run_as = {name: getattr(score, name) for name in ("device", "dtype", "batch_size")}
        return _HeadModel.model_validate({**run_as, "model": self.model})


class _HeadModel(ModelConfig):
    section: ClassVar[str] = "clean.heads"


class CleanConfig(Section):
    """What keeps images out of the dataset that no list names (docs/clean.md). By default nothing does."""

    people: Literal["keep", "drop_labels", "drop_photos", "drop"] = "keep"
    """keep: people are entities as all others, and photos of people images as all others. drop_labels: labels of
    entities that are human are left out. drop_photos: so are images that a head of the reason `person_photo` finds.
    drop: both."""
    heads: tuple[PolicyHead, ...] = ()
    """What looks at the vector of each labelled image, and leaves images out."""
    only_domains: tuple[str, ...] = ()
    """Domains, each with all below it; images whose address is in none of them are left out. Empty: all are taken. A
    list of domains to leave out is `select.exclude`."""
    evaluation_sets: dict[str, Paths] = Field(default_factory=dict)
    """By name the sets that models will be evaluated on, whose images are left out: folders of images, Parquet files or
    tars, or lists of image ids and perceptual hashes."""
    near_duplicates: bool = False
    """Keep one of the images of an entity that look the same, the one of most pixels."""
    near_bits: int = Field(40, ge=0, le=64)
    """Perceptual hashes of images that look the same differ in so many of their 256 bits at the most."""
    near_cosine: float | None = Field(None, ge=0.5, le=1)
    """So do images whose vectors (`score.keep_vectors`) have such a cosine or a higher one, which also finds crops. How
    high it must be depends on the model. None: hashes alone are compared."""
    mirrored: bool = True
    """An image and its mirror image look the same."""

    @model_validator(mode="after")
    def _heads_for_people(self) -> CleanConfig:
        finds = any(head.reason == "person_photo" for head in self.heads)
        if self.people in ("drop_photos", "drop") and not finds:
            raise ValueError(
                f"people: {self.people} wants a head that finds people: name one of reason person_photo in heads, or "
                "set people=drop_labels"
            )
        if finds and self.people not in ("drop_photos", "drop"):
            raise ValueError(
                f"heads: one of reason person_photo leaves photos of people out, and people is {self.people}: set "
                "people=drop_photos or people=drop"
            )
        return self

    @field_validator("only_domains")
    @classmethod
    def _are_domains(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({domains.checked(one) for one in value}))  # in any order they are the same list

    @property
    def drops_labels_of_people(self) -> bool:
        return self.people in ("drop_labels", "drop")


class SelectConfig(Section):
    added_later: ClassVar[tuple[str, ...]] = ("balance_at", "exclude", "statistics")

    min_images_per_entity: int = Field(5, ge=1)
    """Entities with fewer images are dropped, and so are images that have no other label."""
    max_images_per_entity: int | None = Field(None, ge=1)
    """About so many images of an entity are kept, drawn by hash of (image, entity): the same ones in every run. None:
    all are kept."""
    balance_at: int | None = Field(None, ge=1)
    """MetaCLIP's t (Xu et al. 2024, arXiv:2309.16671): an image is kept, with all its labels, if a draw for any of its
    entities of n images falls below t / n, by hash of (image, entity). Entities of up to t images keep all of them,
    frequent ones about t and those that come with a rarer one. None: all are kept."""
    exclude: Paths = ()
    """Lists of what is left out, files or folders: addresses, domains, images, perceptual hashes, entities, and labels
    that are marked as wrong (docs/outputs.md). A change takes effect at the next run; nothing is scored again."""
    statistics: Literal["full", "basic"] = "full"
    """What is told of each entity. full: also in how many texts names can mean it, quantiles of its scores, its most
    frequent surfaces, scripts and domains, and what it was weighed against. basic: counts and means alone, without the
    joins of candidates and pairs that this takes."""


class PublishConfig(Section):
    added_later: ClassVar[tuple[str, ...]] = ("title", "license", "languages", "contact", "mask")

    title: str = "I2E"
    """What the dataset is called on its card."""
    license: str = "other"
    """License of the dataset as Hugging Face spells it. The images' own stay their owners'."""
    languages: tuple[str, ...] = ("en",)
    """Languages of the texts, as ISO 639 codes, for the card."""
    contact: str | None = None
    """Mail address or page to which a request for removal goes. It stands on the card."""
    mask: tuple[Literal["mail", "telephone"], ...] = ("mail", "telephone")
    """What is masked in published alt-text: mail addresses, and telephone numbers that are written as such (with the
    country's code or grouped as numbers are). Names are found in the texts as they are."""
    training_index: bool = True
    """Keep the index beside the dataset that a training with the settings of `train` starts from. Without it the first
    training makes it, on all of its ranks."""


class EncoderConfig(Section):
    """The image and text towers that are trained."""

    model: str = "ViT-B-16"
    """NAME of an open_clip architecture (ViT-B-16, ViT-L-14, ViT-H-14 …), or local-dir:FOLDER with an
    `open_clip_config.json` (which may name a timm trunk, as `timm_model_name`). Both begin with random weights.
    NAME@WEIGHTS and local-dir:FOLDER@folder begin with trained ones (core/model_name.py)."""
    pretrained: PathText | None = None
    """WEIGHTS, where `model` does not name them: open_clip's tag, a file of weights, or `folder` for those that lie in
    the local-dir. None: random."""
    image_size: int | None = Field(None, ge=16)
    """Side of the input image in pixels. None: the model's own."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass. Takes a third more time and a fraction of the memory."""
    compile: bool = False
    """torch.compile the towers. Worth it on a GPU, for runs of more than a few minutes."""

    @model_validator(mode="before")
    @classmethod
    def _one_spelling(cls, values: Any) -> Any:
        return model_name.two_fields(values, untrained=True)


class DataConfig(Section):
    """Which images are trained on, in which order, and how they are varied."""

    batch_size: int = Field(256, ge=1)
    """Images per optimiser step, over all ranks and accumulation steps."""
    workers: int | None = Field(None, ge=0)
    """Decoding workers per rank. None: the rank's share of the cores; 0: decode in the training process."""
    prefetch: int = Field(4, ge=1)
    """Micro-batches that are kept ready per rank."""
    readers: int = Field(4, ge=1)
    """Row groups that a rank reads at the same time: its connections to a store. With `workers` 0 it reads one when it
    needs it."""
    read_ahead_mb: int = Field(512, ge=0)
    """MiB per rank, beside the open windows, of row groups that are read before they are needed. Each of the `readers`
    takes some four times the size of a row group for as long as it reads it."""
    lanes: int = Field(64, ge=1)
    """Streams into which an epoch is divided. Each batch has rows of all lanes, and a rank reads its own ones. With
    more ranks than lanes, some ranks read the same files. Which images share a batch depends on this number, and not on
    the number of ranks."""
    window: int = Field(1024, ge=1)
    """About how many rows of a lane are shuffled together; a window always ends with a row group. A larger window mixes
    better and takes more memory. A rank holds lanes / ranks x window stored images; where row groups have more rows
    than a window, it holds one row group per lane (64 MB as published). With the defaults and one rank that is 4 GB,
    and up to twice as much while one epoch ends and the next begins. Where row groups have more than 2 x window rows,
    fewer lanes are read. Small datasets are read once for all epochs: up to 16,384 images are shuffled as a whole, and
    up to lanes x window images lane by lane."""
    shuffle: bool = True
    """False: images come in the order in which they are stored, for measurements."""
    augment: Literal["crop_flip", "crop", "none"] = "crop_flip"
    """crop_flip: random resized crop and mirroring. crop: without mirroring, which spoils text and all that has a left
    and a right. none: neither."""
    crop_area: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.4, 1.0)
    """Smallest and largest share of the image's area that a random crop takes."""
    label: Literal["best", "sampled"] = "sampled"
    """Which label is the class of an image that has several. best: the most probable. sampled: one drawn by hash, in
    proportion to the probabilities."""
    min_label_score: float = Field(0.0, ge=0, le=1)
    """Labels that are less likely to be right than this are not trained on."""
    hold_out_entities: float | None = Field(None, ge=0, lt=1)
    """Share of the entities, drawn by hash, that are kept out of training with all their images. The evaluation during
    training retrieves these. None: those whose `split` in the dataset is `test` (0.1 where it has no such column)."""
    hold_out_images: float | None = Field(None, ge=0, lt=1)
    """Share of the other entities' images, drawn by hash, that is kept out of training. None: those whose `split` is
    `validation` (0.05 where the dataset has no such column)."""
    hold_out_salt: str | None = Field(None, min_length=1)
    """Any word: entities and images that are held out are drawn anew, others for each word, in the shares above (0.1
    and 0.05). The column `split` is then not looked at. None: the draw of the dataset's own split."""

    @property
    def own_split(self) -> dict[str, float | str]:
        """The settings by which a training holds out other images than the column `split` names; empty: it goes by
        that. The shares that the column was drawn with, written out, are no others."""
        of_column = {"hold_out_entities": splits.TEST_ENTITIES, "hold_out_images": splits.VALIDATION_IMAGES}
        names = (*of_column, "hold_out_salt")
        return {name: value for name in names if (value := getattr(self, name)) not in (None, of_column.get(name))}


class TextConfig(Section):
    """Which text an image is contrasted with. The three numbers are weights of a draw; they need not add up to 1."""

    alt_text: float = Field(0.5, ge=0)
    """Weight of the pair's own text."""
    name: float = Field(0.25, ge=0)
    """Weight of the name of the entity that the image is labelled with."""
    name_and_description: float = Field(0.25, ge=0)
    """Weight of its name and description, as `template` puts them together."""
    template: str = "{name}, {description}"
    """How name and description become one text. Without a description it is the name alone."""


class HeadConfig(Section):
    """Classification over all entities, by cosine."""

    margin: float = Field(0.15, ge=0, lt=2)
    """Subtracted from the cosine of the right class (CosFace, arXiv 1801.09414)."""
    temperature: float = Field(1 / 32, gt=0)
    """Cosines are divided by this."""
    sample: float = Field(0.1, gt=0, le=1)
    """Share of the classes that a step compares with. Those of the batch are always among them. 1: all classes, which
    is the exact softmax."""
    sample_min: int = Field(4096, ge=1)
    """A step never compares with fewer classes than this."""
    correct_sampling: bool = False
    """Add −log of the probability of being sampled to the logit of each negative (arXiv 2507.09331), so that the loss
    estimates the full softmax. Positives are always compared with and stay as they are."""
    drop_closer_than: float | None = Field(None, gt=0, le=1)
    """Negatives whose class vector has a higher cosine than this to that of the right class are left out: they may be
    label noise. None: none is left out."""
    multi_label: Literal["one", "all"] = "one"
    """one: the target is the class sampled for the image. all: its labels share the target equally."""
    learning_rate: float = Field(0.1, gt=0)
    """Peak learning rate of the row-wise Adagrad. It follows the schedule of optimizer.learning_rate."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the class vectors."""


class LossConfig(Section):
    """How the parts of a recipe are weighed."""

    classification: float = Field(0.5, ge=0, le=1)
    """λ of multi-task: λ · classification + (1 − λ) · contrastive."""
    contrastive: Literal["infonce", "siglip"] = "infonce"
    """infonce: softmax over the batch (CLIP, arXiv 2103.00020); siglip: a sigmoid for each pair (arXiv 2303.15343)."""
    equal_entities_are_negatives: bool = False
    """True: images of the same entity push each other's texts away, as in open_clip."""
    shared_negatives: bool = False
    """Where `accumulate` cuts a step, contrast the images of the whole step with each other, and not those of each
    micro-batch (GradCache, arXiv 2101.06983). The towers then encode everything twice: a third more arithmetic."""
    distillation: float = Field(0.0, ge=0)
    """Weight of the distance to stored image vectors (`score.keep_vectors`). 0: no distillation."""
    teacher: PathText | None = None
    """Folder of the vectors to distil. None: the table `image_vectors` of <output>."""
    initial_scale: float = Field(14.3, gt=0, le=100)
    """First value of the learnable logit scale: 1 / 0.07; SigLIP's paper takes 10. Pretrained towers keep their own."""
    initial_bias: float = -10.0
    """First value of SigLIP's learnable bias, which makes up for the many negatives. Pretrained towers keep their
    own."""


class ReinforceConfig(Section):
    """What a training takes from the tables of `i2e reinforce`: where one of the first three is above 0, it sees the
    stored augmentations and no others (`data.augment` and `data.crop_area` are not looked at)."""

    affinity: float = Field(0.0, ge=0, le=1)
    """λ of MobileCLIP (arXiv 2311.17049, §3.1): (1 − λ) · contrastive + λ · how far the similarities of the batch's
    images and texts are from the teachers'. 0: they are not compared."""
    vectors: float = Field(0.0, ge=0)
    """Weight of the distance to the stored image vectors of the augmentation, as `loss.distillation` weighs those of
    the whole image. Vectors of several teachers count as one long one."""
    captions: float = Field(0.0, ge=0, le=1)
    """Share of the images whose text is one of the stored captions, drawn by hash, whatever `text` draws."""
    temperature: float | None = Field(None, gt=0)
    """What the teachers' cosines are divided by in `affinity`. None: each teacher's own temperature, as its weights
    have it."""
    folder: PathText | None = None
    """Folder that `i2e reinforce` wrote. None: `reinforced`, beside the folder of the dataset."""

    @property
    def reads(self) -> bool:
        """Whether the tables are read."""
        return self.affinity > 0 or self.vectors > 0 or self.captions > 0


class TowerConfig(Section):
    """How one of the two towers is trained."""

    freeze: bool = False
    """Leave the tower as it begins, its batch norms' statistics included. With a trained image tower and a new text
    tower this is LiT (arXiv 2111.07991)."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the tower. None: that of the optimizer."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of each block as a share of that of the block after it, as for BEiT (arXiv 2106.08254). What comes
    before the first block counts as a block, and so does what comes after the last. 1: the same rate for all."""


class OptimizerConfig(Section):
    learning_rate: float = Field(8e-4, gt=0)
    """Peak learning rate. For ViT-L/14 the paper takes 6e-4, as far as is known."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of matrices. Norms, biases, scales and position embeddings have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decays of the running means of the gradient and of its square."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's ε, which is added to the root of the mean square. open_clip takes 1e-6 for ViTs."""
    warmup: float = Field(0.05, ge=0)
    """Steps in which the learning rate rises; a number below 1 is a share of all steps. Then it falls to zero along a
    cosine."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Largest norm of the towers' gradient, taken over all ranks. None: no clipping."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a running mean of the weights, which evaluation and export then use. None: no mean."""
    image: TowerConfig = TowerConfig()
    """The image tower."""
    text: TowerConfig = TowerConfig()
    """The text tower. The scale, the bias and what distils are of neither."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the towers that are frozen."""
        return tuple(name for name, tower in (("image", self.image), ("text", self.text)) if tower.freeze)


RECIPES = ("multi_task", "supervised", "contrastive", "clip_alt_text", "clip_entity_text")
Recipe = Literal["multi_task", "supervised", "contrastive", "clip_alt_text", "clip_entity_text"]


class TrainConfig(Section):
    dataset: PathText | None = None
    """Folder of a published I2E dataset. None: <output>/i2e."""
    folder: Annotated[PathText, AfterValidator(_folder)] | None = None
    """Where checkpoints, logs and the export go, a path or a URI; a path must be seen by all ranks. None:
    <output>/train/<recipe>."""
    start_from: Annotated[str | None, BeforeValidator(_checkpoint)] = None
    """Checkpoint of another training to begin from, FOLDER@STEP, FOLDER@best or FOLDER@latest (FOLDER alone: latest).
    The towers and, entity by entity, the rows of the head begin as its are; optimizer, schedule and step are new.
    Recipe, image size and dataset may be others. Read once: a training that goes on has checkpoints of its own."""
    recipe: Recipe = "multi_task"
    """What is learned. `supervised` tells entities apart, `contrastive` brings an image and a text drawn for it
    together, `multi_task` does both (MOFI). Controls are plain CLIP on alt-texts (`clip_alt_text`) and on the entities'
    names and descriptions (`clip_entity_text`)."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps. None: as `epochs` says."""
    epochs: float = Field(16.0, gt=0)
    """Passes over the training images, where `steps` is not set."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches per step and rank. A batch that is too large for the device is cut into so many parts, whose
    gradients are averaged."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, with weights in float32. What stays float32 may then be computed in TF32 on a GPU."""
    strategy: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: every rank holds the whole towers. fsdp: they are sharded over the ranks (FSDP2), for towers that one device
    cannot hold. hsdp: they are sharded over the ranks of each machine, so that only gradients go between machines."""
    ranks: int | None = Field(None, ge=1)
    """Processes that jobs/train.py starts through Spark. None: with a local master one per GPU, or one; on a cluster it
    must be set. torchrun has its own option for it."""
    device: Device = "auto"
    """Where ranks compute. auto: cuda where each rank finds a GPU, else cpu. mps, a Mac's GPU, is for one rank."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of torch per rank. None: the rank's share of the cores."""
    seed: int = 0
    """Seed of the initial weights, of the order of the data and of every draw."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between evaluations on what is held out. There is always one before the first step and one after the last.
    None: only these two."""
    evaluate_images: int = Field(4096, ge=2)
    """Images that an evaluation during training encodes at most of each kind: of held-out entities, held-out images of
    other entities, and training images. They are drawn by hash."""
    evaluate_sets: dict[str, PathText] = Field(default_factory=dict)
    """Image sets that are measured at each evaluation beside what is held out, by name, as `evaluate.data` names them:
    gpr1200, cifar100 … or a name of your own."""
    evaluate_protocols: Paths = ("gpr", "revisited", "knn", "zero_shot")
    """Protocols of `i2e evaluate` by which these sets are measured, where they fit. A linear probe (`linear_probe`)
    takes longer than all of these."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    checkpoint_minutes: float | None = Field(15.0, gt=0)
    """Minutes after which there is a checkpoint in any case: what a kill costs at most. None: steps alone count."""
    save_in_background: bool = True
    """Go on with the training while a checkpoint is written. Each rank holds a copy of what it writes meanwhile, in the
    memory of the host: three or four times the towers' float32 weights, shared out among the ranks from 256 MB on, and
    its rows of the head."""
    skip_bad_steps: int = Field(0, ge=0)
    """Steps of the whole training whose loss or gradient is NaN or infinite and that are passed over. Nothing of them
    is applied, and their images are noted in `bad-step-*.json`. One more stops the training."""
    keep_checkpoints: int = Field(3, ge=1)
    """How many of the newest checkpoints are kept. The best by held-out retrieval is kept, too."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of the journal."""
    peak_tflops: float | None = Field(None, gt=0)
    """What a rank's device can do at most, in 10¹² operations a second: the journal's `mfu` is the share of it that the
    towers use. None: by the card's name, for bfloat16; other devices have no `mfu`."""
    wandb: str | None = None
    """Project of Weights & Biases that gets what TensorBoard gets, and these settings. WANDB_MODE=offline keeps it in
    the folder. None: nothing goes there."""
    encoder: EncoderConfig = EncoderConfig()
    """The towers."""
    data: DataConfig = DataConfig()
    """The images and their order."""
    text: TextConfig = TextConfig()
    """The texts that images are contrasted with."""
    head: HeadConfig = HeadConfig()
    """Classification over entities."""
    loss: LossConfig = LossConfig()
    """How the parts of a recipe are weighed."""
    reinforce: ReinforceConfig = ReinforceConfig()
    """Stored augmentations, vectors of teachers and captions."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW for the towers."""


class OvenConfig(Section):
    candidates: Literal["names", "descriptions", "head"] = "names"
    """What an image is compared with: the name of each entity, its name and description, or the entity head of a
    checkpoint (train:FOLDER@STEP), which knows the entities that it was trained on."""
    entities: PathText | None = None
    """Entities whose texts are candidates: a file of JSON lines with wikidata_id, wikipedia_title and, for
    descriptions, wikipedia_summary or wikipedia_content. None: Wiki6M_ver_1_0_title_only.jsonl, Wiki6M_ver_1_0.jsonl or
    Wiki6M_ver_1_0.jsonl.gz, beside the annotations or above them."""
    trained_on: PathText | None = None
    """A published I2E dataset that the models were trained on: accuracy is also given by how many of its images an
    example's entity has."""
    question_weight: float = Field(0.5, ge=0, le=1)
    """Share of the question's vector in what the query set asks with, the rest being the image's. 0.5: their mean, 0:
    the image alone. The entity set always asks with the image."""


class EvaluateConfig(Section):
    models: Paths = ()
    """Encoders to measure, each `[LABEL=]MODEL` (core/model_name.py): what score.model takes, MODEL@random for the
    same architecture untrained, train:FOLDER@STEP for a checkpoint (or @best, @latest), hf:FOLDER for a Hugging Face
    model, or vectors:FOLDER of stored vectors, a file DATASET.npz for each data set."""
    data: dict[str, PathText] = Field(default_factory=dict)
    """Path of each data set by its name: gpr1200, roxford5k, cifar100 … (evaluate/datasets.py lists them), or a name of
    your own."""
    suite: Paths = ()
    """Protocols and data sets to measure, by name. Empty: all that the data sets allow."""
    folder: PathText | None = None
    """Where vectors, results, pictures and the page go. None: <output>/evaluation."""
    preprocessing: Literal["model", "mofi-gpr1200"] = "model"
    """How images are prepared. model: as the model says. mofi-gpr1200: as for MOFI's released figures, which is
    ToTensor, Resize(224, antialias=False), CenterCrop, CLIP's mean and deviation."""
    device: Device = "auto"
    """Where encoders run. auto: cuda where there is a GPU, else cpu."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the encoders. What is computed from their vectors is float64."""
    batch_size: int = Field(64, ge=1)
    """Images per forward pass on a GPU; halved by itself when the GPU's memory runs out."""
    block_mb: int = Field(256, ge=1)
    """Memory in MB that a block of similarities may take, beside the vectors."""
    knn_k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours to measure with. A figure is reported for each."""
    knn_temperature: float = Field(0.07, gt=0)
    """Temperature of the neighbours' weights, exp(cosine / temperature) (DINO, arXiv 2104.14294)."""
    oven: OvenConfig = OvenConfig()
    """What OVEN's images are compared with."""
    projection: Literal["tsne", "umap", "none"] = "tsne"
    """How vectors are laid out on the plane for the page's picture."""
    seed: int = 0
    """Seed of projections and of the weights of untrained encoders (MODEL@random). No other figure depends on it."""


class Config(Section):
    output: Annotated[PathText, AfterValidator(_named), AfterValidator(_folder)] = "out/run"
    """Folder of all tables of the run."""
    stages: Paths = ()
    """Stages of your own beside the built-in ones (docs/extending.md): `package.module:Class`, `path/file.py:Class`, or
    the name of an entry point of the group `i2e_pipeline.stages`. A stage's settings stand in a section of its name."""
    storage: StorageConfig = StorageConfig()
    """How tables are written."""
    session: SessionConfig = SessionConfig()
    """How Spark is started."""
    run: RunConfig = RunConfig()
    """How a run is carried out."""
    pairs: PairsConfig = PairsConfig()
    """The input: image + alt-text pairs."""
    fetch: FetchConfig = FetchConfig()
    """How images of a table of addresses are fetched."""
    knowledge_base: KnowledgeBaseConfig = KnowledgeBaseConfig()
    """What the knowledge base is made of."""
    extract: ExtractConfig = ExtractConfig()
    """How names are found in texts."""
    link: LinkConfig = LinkConfig()
    """Which entities a name can mean."""
    score: ScoreConfig = ScoreConfig()
    """How images are scored against entities."""
    label: LabelConfig = LabelConfig()
    """Which scored entities become labels."""
    verify: VerifyConfig = VerifyConfig()
    """A model that is shown images beside their candidates."""
    clean: CleanConfig = CleanConfig()
    """Which images look like others, or are for evaluation alone."""
    select: SelectConfig = SelectConfig()
    """Which labels are published."""
    publish: PublishConfig = PublishConfig()
    """What the published dataset says of itself, and leaves out of its texts."""
    train: TrainConfig = TrainConfig()
    """Pre-training of image encoders."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured of which encoders."""

    @model_validator(mode="after")
    def _secrets_are_known(self) -> Config:
        secrets.remember(secrets.found(self.model_dump()))
        return self

    @model_validator(mode="after")
    def _floors_leave_room(self) -> Config:
        if self.link.max_candidates > self.knowledge_base.max_candidates:
            raise ValueError(
                f"link.max_candidates ({self.link.max_candidates}) is more than knowledge_base.max_candidates "
                f"({self.knowledge_base.max_candidates})"
            )
        return self


_SPELLED_BEFORE = {
    "run.units_in_flight": "run.waves_in_flight",
    "build.calibration": "label.calibration",
    "build.bar": "label.threshold",
    "build.max_labels_per_image": "label.max_labels_per_image",
    "build.min_images_per_entity": "select.min_images_per_entity",
    "build.max_images_per_entity": "select.max_images_per_entity",
    "build.exclude": "select.exclude",
}
"""Settings that were renamed, from their old name to today's. The old one is still read, with a note."""

SectionsOf = Callable[[Sequence[str]], Mapping[str, type[Section]]]
"""A function from the names in `stages` to the config sections that those stages bring."""


def load(file: str | None = None, overrides: Sequence[str] = (), sections_of: SectionsOf | None = None) -> Config:
    """The config of a YAML file with `section.key=value` overrides on top; raises ConfigError.

    sections_of   None: stages from outside and their sections are passed over, as by commands that run no stage
    """
    tree: dict[str, Any] = {}
    if file is not None:
        try:
            tree = settings.read(files.at_home(file))
        except settings.SettingsError as error:
            raise ConfigError(str(error)) from None
    return from_tree(merge(tree, overrides), file or "the defaults", overrides, sections_of)


def merge(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A tree of settings with `section.key=value` overrides on top; old spellings become today's.

    Values of overrides, and scalars of YAML, become text or numbers in `from_tree`, as their settings want.
    """
    tree = _respelled(tree)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {secrets.hide(override)}: write it as section.key=value")
        try:
            settings.put(tree, _today(key.strip()), text, Config)
        except settings.SettingsError as error:
            raise ConfigError(f"--set {secrets.hide(override)}: {error}") from None
    return tree


def _today(key: str) -> str:
    if key in _SPELLED_BEFORE:
        log.warning("%s is now %s: the old spelling is still read", key, _SPELLED_BEFORE[key])
    return _SPELLED_BEFORE.get(key, key)


def _respelled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with every setting under the name that it has today. Raises ConfigError for one set twice."""
    tree = copy.deepcopy(dict(settings))
    for old, new in _SPELLED_BEFORE.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if not isinstance(tree.get(section), dict) or key not in tree[section]:
            continue
        into = tree.setdefault(new_section, {})
        if into is None:
            into = tree[new_section] = {}
        if isinstance(into, dict) and new_key in into:
            raise ConfigError(f"{old} is the old spelling of {new}, and both are set: leave {old} out")
        if isinstance(into, dict):
            into[_today(old).split(".")[1]] = tree[section].pop(key)
    for section in {old.split(".")[0] for old in _SPELLED_BEFORE}:
        if tree.get(section, 0) in ({}, None):
            del tree[section]
    return tree


def from_tree(
    given: Mapping[str, Any], file: str, overrides: Sequence[str] = (), sections_of: SectionsOf | None = None
) -> Config:
    """The validated config; raises ConfigError with a line for each setting that is not allowed.

    From now on this process opens object stores as `storage.options` says.
    """
    tree = _respelled(given)
    source = {_SPELLED_BEFORE.get(k, k): "--set" for k in (o.partition("=")[0].strip() for o in overrides)}
    model = Config
    named = _stages_of(tree)
    if named and sections_of is None:
        tree = {key: value for key, value in tree.items() if key in Config.model_fields and key != "stages"}
    elif named and sections_of is not None:
        model = _with_sections(sections_of(named))
        for section in model.model_fields.keys() - Config.model_fields.keys():
            if tree.get(section) is None:
                tree[section] = {}
    config = _validated(tree, model, source, file)
    stores.use(config.storage.options, paths(config))
    return config


def _stages_of(tree: Mapping[str, Any]) -> Any:
    named = _one_or_many(settings.settled(tree.get("stages"), Paths))
    if named and (not isinstance(named, list | tuple) or not all(isinstance(n, str) for n in named)):
        raise ConfigError(f"stages: {named!r} is not allowed (a list of names, each package.module:Class)")
    return named


def _validated(tree: Mapping[str, Any], model: type[Config], source: dict[str, str], file: str) -> Config:
    try:
        return model.model_validate(settings.settled(tree, model))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, source, file, model) for e in error.errors())) from None


# Settings that lie in an output


def of_output(
    given: Mapping[str, Any], file: str, overrides: Sequence[str] = (), sections_of: SectionsOf | None = None
) -> Config:
    """`from_tree` of what an output keeps of its last run, with overrides on top. The output may be somebody else's, so
    its settings are data. Raises ConfigError where one of them, that no override replaces, would have code loaded or
    run, or a server asked that the user has not named."""
    if asked := reaching(given, file, {override.partition("=")[0].strip() for override in overrides}):
        raise ConfigError(
            f"{file} sets {', '.join(asked)}, and what lies in an output is not trusted with code to load, with Spark "
            f"or with servers to ask: if it is yours, `--config {file}` in place of the folder says so (with `--set "
            "output=FOLDER` where it has been moved); else `--set KEY=VALUE` puts another value in its place"
        )
    return from_tree(merge(dict(given), overrides), file, overrides, sections_of)


_LOCAL_MASTER = r"local(\[(\*|\d+)(, ?\d+)?\])?"
_MEMORY = r"\d+[kmgtKMGT]?[bB]?"
_PLAIN = re.compile(r"true|false|[\d.]+ ?[a-zA-Z]{0,3}")
_HARMLESS_CONF = re.compile(
    r"spark\.(sql\.(shuffle\.partitions|adaptive\.\w+|files\.\w+)|task\.(cpus|maxFailures)|speculation|locality\.wait"
    r"|driver\.maxResultSize|network\.timeout|executor\.(heartbeatInterval|cores|instances|memory|memoryOverhead)"
    r"|memory\.\w+|ui\.enabled|ui\.showConsoleProgress)"
)
"""Spark's properties that say how much and how long, and nothing of what is loaded, opened or trusted."""


def reaching(given: Mapping[str, Any], file: str, replaced: Collection[str] = ()) -> list[str]:
    """The settings of a tree that load or run code, or that say which servers are asked and how.

    replaced   settings whose values do not count. Loads nothing; raises ConfigError for settings that are not allowed
    """
    tree = {key: value for key, value in _respelled(given).items() if key in Config.model_fields}
    found = ["stages"] if _stages_of(tree) else []
    tree.pop("stages", None)
    config = _validated(tree, Config, {}, file)
    session, gpu, conf = config.session, config.session.gpu_executor, config.session.conf
    suspect = {
        "session.master": not re.fullmatch(_LOCAL_MASTER, session.master or "local"),
        "session.jars": session.jars is not None,
        "session.driver_memory": not re.fullmatch(_MEMORY, session.driver_memory),
        "session.gpu_executor.memory": not re.fullmatch(_MEMORY, gpu.memory),
        "session.gpu_executor.overhead": not re.fullmatch(_MEMORY, gpu.overhead),
        "session.gpu_executor.discovery": bool(gpu.discovery),
        "extract.recognizer": not _is_installed(config.extract.recognizer),
        "fetch.python": config.fetch.python is not None,
        "fetch.allow_private": config.fetch.allow_private,
        "verify.server": bool(config.verify.server),
        "verify.api_key_env": config.verify.api_key_env is not None,
        "clean.heads": any(head.is_code for head in config.clean.heads),
    }
    for key, value in conf.items():
        suspect[f"session.conf.{key}"] = not (_HARMLESS_CONF.fullmatch(key) and _PLAIN.fullmatch(value))
    for key in config.storage.options:
        suspect[f"storage.options.{key}"] = key not in ("s3.path_style", "s3.anonymous")
    for key, path in _texts(config.model_dump(mode="json")):
        suspect[key] = suspect.get(key, False) or bool(stores.scheme_of(path) and stores.QUERY.search(path))
    found += [key for key, is_so in suspect.items() if is_so]
    return [key for key in found if not any(key == of or key.startswith(f"{of}.") for of in replaced)]


def _is_installed(recognizer: str) -> bool:
    """Whether it is no folder that came with an output: a spaCy pipeline names functions that are called."""
    from i2e_pipeline.core import packaged

    inside = os.path.realpath(recognizer).startswith(f"{os.path.realpath(packaged.folder('i2e_pipeline'))}{os.sep}")
    return inside or recognizer == "blank" or (recognizer.isidentifier() and not os.path.exists(recognizer))


def _texts(tree: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Each text of a tree with its setting."""
    if isinstance(tree, str):
        yield above, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _texts(value, f"{above}.{key}" if above else key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value, above)


def _with_sections(sections: Mapping[str, type[Section]]) -> type[Config]:
    """Config with a section for each stage from outside that has settings."""
    if taken := sections.keys() & Config.model_fields.keys():
        raise ConfigError(f"stages: {', '.join(sorted(taken))} is a section of this package: name the stage otherwise")
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in sections.items()}
    return create_model("Config", __base__=Config, **fields)


_WANTED = {
    "model_type": "a section: a setting and its value in each line below it",
    "dict_type": "names with their values: {name: value}",
    "tuple_type": "a list: [one, other]",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "missing": "one value more is wanted",
}
"""In words of settings: what is allowed, by pydantic's kinds of errors."""


def _explain(error: Any, source: dict[str, str], file: str, config: type[Config]) -> str:
    path = ".".join(str(part) for part in error["loc"] if not (isinstance(part, str) and "[" in part))
    parts = path.split(".")
    origin = next((source[p] for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in source), "")
    origin = origin or next((source[key] for key in source if key.startswith(f"{path}.")), file)
    if error["type"] == "extra_forbidden":
        known = _known(config, error["loc"][:-1])
        of_a_stage = "" if "." in path else " (settings of a stage of your own: name the stage in `stages`)"
        meant = _meant(error["loc"], known, config)
        said = f"{meant} Known" if meant else "known"
        return f"{path}: no such setting, from {origin}; {said} here: {', '.join(known)}{of_a_stage}"
    allowed = _WANTED.get(error["type"]) or error["msg"].removeprefix("Input should be ")
    allowed = allowed.removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {allowed}, from {origin}" if path else allowed
    given = secrets.without(error["input"], path or "config")
    return f"{path}: {'nothing' if given is None else repr(given)} is not allowed ({allowed}), from {origin}"


def _known(config: type[Config], loc: tuple[Any, ...]) -> list[str]:
    model: Any = config
    for part in loc:
        model = model.model_fields[part].annotation
    return sorted(model.model_fields)


def _meant(loc: tuple[Any, ...], known: Sequence[str], config: type[Config]) -> str:
    """What somebody may have meant by a name that no setting has."""
    *above, name = map(str, loc)
    named = {path.rpartition(".")[2]: path for path in _settings(config)}
    like = difflib.get_close_matches(name.lower().replace("-", "_"), known, 1)
    if like:
        meant = ".".join([*above, like[0]])
    elif name in _settings(config):
        section, _, key = name.rpartition(".")
        return f"in a file write it as `{section}: {{{key}: …}}`."
    else:
        meant = named.get(name, "")
    return f"do you mean {meant}?" if meant else ""


def _settings(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The path of every setting, the deepest first, so that of equal names the one with the shortest path is last."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{above}{name}.")
        else:
            yield f"{above}{name}"


_LOCAL_MODEL = "local-dir:"


def paths(config: Config) -> list[tuple[str, str]]:
    """Every path of the config with its setting: output, inputs, local models, and what `Content` marks, in sections of
    stages from outside, too."""
    found = [("output", config.output), *(("pairs.path", path) for path in config.pairs.path)]
    found += [("session.shared_folders", path) for path in config.session.shared_folders]
    if config.knowledge_base.path:
        found.append(("knowledge_base.path", config.knowledge_base.path))
    for name in type(config).model_fields:
        section = getattr(config, name)
        if isinstance(section, Section):
            found += _paths(name, section)
    if os.sep in config.extract.recognizer:
        found.append(("extract.recognizer", config.extract.recognizer))
    if config.label.calibration:
        found.append(("label.calibration", config.label.calibration))
    found += [(f"train.{k}", v) for k in ("dataset", "folder") if (v := getattr(config.train, k))]
    found += [(f"train.evaluate_sets.{name}", path) for name, path in config.train.evaluate_sets.items()]
    if config.train.reinforce.folder:
        found.append(("train.reinforce.folder", config.train.reinforce.folder))
    if config.train.start_from:
        found.append(("train.start_from", model_name.checkpoint_of(config.train.start_from)[0]))
    return found


def _paths(name: str, section: Section) -> Iterator[tuple[str, str]]:
    for key, kind in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            yield from _paths(f"{name}.{key}", value)
        elif isinstance(value, str) and any(isinstance(m, Content) for m in kind.metadata):
            yield f"{name}.{key}", value
        elif isinstance(value, str) and value.startswith(_LOCAL_MODEL):
            yield f"{name}.{key}", value.removeprefix(_LOCAL_MODEL).partition("@")[0]


def dump(config: Config) -> str:
    """The whole tree as YAML, defaults included and secrets left out."""
    return as_yaml(config.shown())


_MARK = "# The settings of the last run or training that was started here, defaults included and without secrets.\n"


def is_ours(content: bytes) -> bool:
    """Whether `keep` wrote it."""
    return content.startswith(_MARK.encode())


def keep(config: Config, folder: str) -> None:
    """Write <folder>/config.yaml, the whole tree; a file of somebody else's of that name stays."""
    path = files.join(folder, "config.yaml")
    if files.exists(path) and not is_ours(files.read_bytes(path)):
        log.warning("%s is not ours and stays: `i2e config` prints the settings of this run", path)
        return
    files.write_bytes(path, (_MARK + dump(config)).encode())


def differing(config: Config) -> dict[str, Any]:
    """Of `config.shown()` what differs from the defaults, those of stages from outside among them."""
    parts = {name: getattr(config, name) for name in type(config).model_fields}
    defaults = {
        name: type(part).model_construct().shown() if isinstance(part, Section) else Config.model_fields[name].default
        for name, part in parts.items()
    }
    return _differing(config.shown(), json.loads(json.dumps(defaults)))


def _differing(tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            if below := _differing(value, default):
                found[key] = below
        elif key not in defaults or value != default:
            found[key] = value
    return found


def as_yaml(tree: Mapping[str, Any], ascii_alone: bool = False) -> str:
    """`ascii_alone`: other characters as escapes, which YAML reads as they were."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=not ascii_alone)


def digest(value: Any) -> str:
    """32 hex characters that name a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
