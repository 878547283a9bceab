"""Object stores: what `storage.options` says of them, as each client wants to be told it.

Three clients open the same store: pyarrow in the driver and in every worker, Hadoop's in the JVM, delta-rs for Delta's
logs. Each has names of its own for the same things. Here is the one table between them.

The options of a process stand in its environment, as the stores' own credentials do, so that its children have them,
too. Spark's workers are no children of the driver: they get the same variable from `SparkContext.environment`
(engine/session.py), which goes with every task and, unlike Spark's properties, into no log and onto no page.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pyarrow import fs as pafs

from i2e_pipeline.core import secrets
from i2e_pipeline.core.errors import I2EError

VARIABLE = "I2E_STORAGE_OPTIONS"
"""The environment variable that holds the options of a process, as JSON."""

OF_SCHEME = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "abfss": "abfs"}
"""The store that a scheme of URIs is of, as options name it."""

OPTIONS = {
    "s3.endpoint": "URL of the server, where that is not AWS: http://127.0.0.1:9000. http:// means without TLS.",
    "s3.region": "Region of the buckets. With an endpoint and without this: us-east-1.",
    "s3.access_key_id": "Access key; secret_access_key stands beside it.",
    "s3.secret_access_key": "Its secret.",
    "s3.session_token": "Token of temporary keys.",
    "s3.path_style": "true: SERVER/BUCKET/KEY; false: BUCKET.SERVER/KEY. Else: true with an endpoint.",
    "s3.anonymous": "true: requests are not signed, for public buckets.",
    "gs.service_account_file": "JSON key file of a service account, at the same path on every machine.",
    "abfs.account_key": "Key of the storage account.",
    "abfs.sas_token": "Shared access signature, instead of a key.",
    "abfs.tenant_id": "Tenant of a service principal; client_id and client_secret stand beside it.",
    "abfs.client_id": "Its application.",
    "abfs.client_secret": "Its secret.",
}
"""Every option and what it says; the name before the dot is the store's."""

_TRUTHS = ("s3.path_style", "s3.anonymous")
_TOGETHER = (
    ("s3.access_key_id", "s3.secret_access_key"),
    ("abfs.tenant_id", "abfs.client_id", "abfs.client_secret"),
)
_APART = (("s3.access_key_id", "s3.anonymous"), ("abfs.account_key", "abfs.sas_token", "abfs.tenant_id"))
_ENDPOINT = re.compile(r"(https?)://([^/?#@\s]+)/?")


def checked(options: Mapping[str, str]) -> dict[str, str]:
    """The options, when they fit together. Raises ValueError, which names the option and never a secret."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise ValueError(f"{name} is no option of a store; known are {', '.join(OPTIONS)}")
        if not value.strip():
            raise ValueError(f"{name} is empty: leave it out, and the client's own environment holds")
    for name in _TRUTHS:
        if name in options and options[name] not in ("true", "false"):
            raise ValueError(f"{name}: {options[name]!r} is not allowed (true or false)")
    if "s3.endpoint" in options and not _ENDPOINT.fullmatch(options["s3.endpoint"]):
        raise ValueError("s3.endpoint is not allowed (a URL without a path or a password, as http://127.0.0.1:9000)")
    for group in _TOGETHER:
        there = [name for name in group if name in options]
        if there and len(there) < len(group):
            raise ValueError(f"{there[0]} is set without {', '.join(n for n in group if n not in options)}")
    if "s3.session_token" in options and "s3.access_key_id" not in options:
        raise ValueError("s3.session_token is set without s3.access_key_id, s3.secret_access_key")
    for group in _APART:
        there = [name for name in group if options.get(name, "false") != "false"]
        if len(there) > 1:
            raise ValueError(f"{' and '.join(there)} are both set, and one of them says who asks: leave the others out")
    return dict(options)


class StoreFault(I2EError, OSError):
    """A store that cannot be opened, read or written; the message names the setting, what is wrong and the remedy."""


_named: list[tuple[str, str]] = []
"""Settings of this process's config and their paths, for messages; output is the first."""


def use(options: Mapping[str, str], named: Iterable[tuple[str, str]] = ()) -> None:
    """Whatever this process and those that it starts open from now on, they open with these options.

    named   (setting, path) of what lies in stores: a fault of a store is told as one of that setting
    """
    _named[:] = [(setting, path) for setting, path in named if scheme_of(path) not in ("", "file")]
    if options:
        os.environ[VARIABLE] = json.dumps(dict(options), sort_keys=True)
    else:
        os.environ.pop(VARIABLE, None)


def in_use() -> dict[str, str]:
    """The options of this process."""
    found: dict[str, str] = json.loads(os.environ.get(VARIABLE) or "{}")
    secrets.remember(secrets.found(found))
    return found


def scheme_of(path: str) -> str:
    """The scheme of a URI; of a path of this machine, the empty text."""
    return path.partition("://")[0] if "://" in path else ""


_SCHEMES = ("file", *OF_SCHEME, "hdfs", "viewfs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def refuse_scheme(path: str) -> None:
    """Raise ValueError for a URI that no client opens."""
    if not (found := _SCHEME.match(path)) or found[1] in _SCHEMES:
        return
    if found[1].lower() in _SCHEMES:
        raise ValueError(f"{found[1]}:// is not known: write it in small letters, {found[1].lower()}://")
    raise ValueError(
        f"{found[1]}:// is no store that is known: known are paths of this machine, s3://, gs://, abfs:// and hdfs://"
    )


QUERY = re.compile(r"\?\w+=.*$")
"""How pyarrow is told in a URI how its store is opened."""

_INSTEAD = {
    "s3": "s3.access_key_id, s3.secret_access_key, s3.session_token",
    "gs": "gs.service_account_file",
    "abfs": "abfs.account_key, abfs.sas_token",
}


def refuse_secret(path: str) -> None:
    """Raise ValueError, which does not quote it, for a URI with a password, a key or a signature in it.

    Paths are written into commits, units and manifests, printed, and told to Spark: what stands in them is no secret.
    """
    if secrets.in_address(path):
        scheme = scheme_of(path)
        options = _INSTEAD.get(OF_SCHEME.get(scheme, ""))
        instead = f"storage.options ({options}) or the environment" if options else "the environment"
        raise ValueError(
            f"a {scheme}:// address with a password, a key or a signature in it, and paths are printed and written in "
            f"many places: leave it out, and give it by {instead}"
        )


def _of(path: str) -> dict[str, str]:
    """The options that a URI is opened with, without the store's name before them.

    A URI that says for itself how its store is opened (`?endpoint_override=…`) has none.
    """
    store = OF_SCHEME.get(scheme_of(path))
    if store is None or VARIABLE not in os.environ or QUERY.search(path.partition("://")[2].partition("/")[2]):
        return {}
    return {name.partition(".")[2]: v for name, v in in_use().items() if name.startswith(f"{store}.")}


# Faults


_SAID_BY_STORES = re.compile(
    r"AWS Error|\bS3\b|Generic \w+ error|google::cloud|GetObjectMetadata|\bAzure\b|lib(?:jvm|hdfs)\b|\bHDFS\b"
)
_LONGEST = 400
"""Characters of what a client says: libhdfs names each folder that it looked in."""
_FAULTS = (
    (r"lib(?:jvm|hdfs)\b", "client", "set JAVA_HOME, and HADOOP_HOME to a Hadoop whose lib/native holds libhdfs.so"),
    (r"NoSuchBucket|bucket.{0,80}(?:not (?:exist|found))|ContainerNotFound", "path", "name a bucket that is there"),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken|AccessDenied|ACCESS_DENIED|Forbidden|\b403\b"
        r"|credential|\b401\b|AuthenticationFailed",
        "key",
        "give keys that may read and write there",
    ),
    (r"PermanentRedirect|AuthorizationHeaderMalformed|\b301\b", "region", "name the bucket's region"),
    (
        r"curlCode: (?:35|60)\b|SSL|TLS|certificate",
        "endpoint",
        "name its server, with http:// where it speaks no TLS",
    ),
    (
        r"connect|resolve|timed? ?out|does not answer|curlCode|UnknownHost|error sending request",
        "endpoint",
        "name a server that answers from this machine",
    ),
)
"""What a client says, the setting that it is of, and the remedy."""
_SETTINGS = {
    "s3": {
        "key": "s3.access_key_id and s3.secret_access_key",
        "region": "s3.region",
        "endpoint": "s3.endpoint",
    },
    "gs": {"key": "gs.service_account_file"},
    "abfs": {"key": "abfs.account_key, abfs.sas_token or abfs.client_secret"},
}


def explained(said: str, path: str, setting: str) -> str:
    """What a client said of a path in a store, in one line: with the options in use, the one to look at, a remedy."""
    said = next((line.strip() for line in said.splitlines() if line.strip()), "")[:_LONGEST].rstrip(".")
    store = OF_SCHEME.get(scheme_of(path), "")
    of, remedy = next(((of, r) for pattern, of, r in _FAULTS if re.search(pattern, said, re.IGNORECASE)), ("", ""))
    known = ""
    if store:
        told = ", ".join(name for name in in_use() if name.startswith(f"{store}."))
        known = f" (storage.options sets {told or 'nothing of it, so its environment holds'})"
    option = _SETTINGS.get(store, {}).get(of)
    where = f"look at storage.options: {option}: " if option else f"look at {setting}: " if of == "path" else ""
    return f"{said}{known}" + (f"; {where}{remedy}" if remedy else "")


def fault(error: BaseException | str, path: str, setting: str | None = None) -> StoreFault:
    """This error of a client, as users are told it. `setting`: None: the one that names this path, if one does."""
    setting = setting or setting_of(path)
    said = f"{path} cannot be opened: {explained(str(error), path, setting)}"
    return StoreFault(said if not setting or setting == "the path" else f"{setting}: {said}")


def setting_of(path: str) -> str:
    """The setting of the config in use that names this path, or else its bucket."""
    same = [(name, p) for name, p in _named if p == path] or [(n, p) for n, p in _named if _top(p) == _top(path)]
    return same[0][0] if same else "the path"


def later_fault(error: BaseException) -> StoreFault | None:
    """An error in the middle of a command, as users are told it; None where it is not a store's.

    Only its text tells which store it is of.
    """
    said = str(error)
    ours = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("deltalake", "pyarrow")
    if not ours or isinstance(error, I2EError) or not _SAID_BY_STORES.search(said):
        return None
    hit = next(((n, p) for n, p in _named if bucket_of(p) and bucket_of(p) in said), None) or next(iter(_named), None)
    return fault(error, hit[1], hit[0]) if hit else StoreFault(explained(said, "", ""))


def bucket_of(path: str) -> str:
    """The bucket or container of a URI; empty where its scheme knows none."""
    return path.partition("://")[2].partition("/")[0].partition("@")[0] if scheme_of(path) in OF_SCHEME else ""


def _top(path: str) -> str:
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


# pyarrow


_open: dict[tuple[int, str, str], pafs.FileSystem] = {}
"""By process, store and account, options: a client keeps its connections. One that a fork copied answers nobody."""


def filesystem(uri: str) -> tuple[pafs.FileSystem, str] | None:
    """pyarrow's file system of a URI, and the path within it; None where no options are set for its store.

    Raises ValueError for a URI that the store does not have.
    """
    options = _of(uri)
    if not options:
        return None
    scheme, _, rest = uri.partition("://")
    authority, _, inner = rest.partition("/")
    store, account = OF_SCHEME[scheme], ""
    if store == "abfs":
        authority, _, account = authority.rpartition("@")
        if not authority or "." not in account:
            raise ValueError(f"write it as {scheme}://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH")
    key = (os.getpid(), f"{store}://{account}", json.dumps(options, sort_keys=True))
    if key not in _open:
        _open[key] = _ARROW[store](options, account)
    return _open[key], f"{authority}/{inner}".rstrip("/")


def _arrow_s3(options: Mapping[str, str], account: str) -> pafs.FileSystem:
    s3 = _S3.of(options)
    return pafs.S3FileSystem(
        access_key=options.get("access_key_id"),
        secret_key=options.get("secret_access_key"),
        session_token=options.get("session_token"),
        anonymous=s3.anonymous,
        region=s3.region,
        scheme=s3.scheme,
        endpoint_override=s3.server,
        force_virtual_addressing=not s3.path_style,
    )


def _arrow_gs(options: Mapping[str, str], account: str) -> pafs.FileSystem:
    # Its client takes a key file from there alone.
    os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = options["service_account_file"]
    return pafs.GcsFileSystem()


def _arrow_abfs(options: Mapping[str, str], account: str) -> pafs.FileSystem:
    name, _, suffix = account.partition(".")
    return pafs.AzureFileSystem(
        name,
        **options,
        dfs_storage_authority=f".{suffix}",
        blob_storage_authority=f".{suffix.replace('dfs.', 'blob.', 1)}",
    )


_ARROW: dict[str, Callable[[Mapping[str, str], str], pafs.FileSystem]] = {
    "s3": _arrow_s3,
    "gs": _arrow_gs,
    "abfs": _arrow_abfs,
}


@dataclass(frozen=True)
class _S3:
    """What options of S3 mean together."""

    scheme: str | None
    server: str | None
    """host:port"""
    region: str | None
    path_style: bool
    anonymous: bool

    @classmethod
    def of(cls, options: Mapping[str, str]) -> _S3:
        found = _ENDPOINT.fullmatch(options.get("endpoint", ""))
        scheme, server = found.groups() if found else (None, None)
        return cls(
            scheme,
            server,
            # Asked for none, each client takes another: AWS is asked, or the machine's metadata service.
            options.get("region") or ("us-east-1" if server else None),
            options.get("path_style", "true" if server else "false") == "true",
            options.get("anonymous") == "true",
        )


# Hadoop


def hadoop(options: Mapping[str, str]) -> dict[str, str]:
    """Hadoop's properties for these options (`fs.s3a.endpoint` …).

    Names: hadoop.apache.org/docs/r3.4.2 (hadoop-aws, hadoop-azure), hadoop-connectors' gcs/CONFIGURATION.md of 2.2.
    """
    found: dict[str, str | None] = {}
    stores = {name.partition(".")[0] for name in options}
    if "s3" in stores:
        s3 = _S3.of({n.removeprefix("s3."): v for n, v in options.items()})
        found |= {
            "fs.s3a.endpoint": f"{s3.scheme}://{s3.server}" if s3.server else None,
            "fs.s3a.endpoint.region": s3.region,
            "fs.s3a.connection.ssl.enabled": "false" if s3.scheme == "http" else None,
            "fs.s3a.path.style.access": str(s3.path_style).lower(),
            "fs.s3a.access.key": options.get("s3.access_key_id"),
            "fs.s3a.secret.key": options.get("s3.secret_access_key"),
            "fs.s3a.session.token": options.get("s3.session_token"),
            "fs.s3a.aws.credentials.provider": (
                "org.apache.hadoop.fs.s3a.AnonymousAWSCredentialsProvider" if s3.anonymous else None
            ),
        }
    if "gs.service_account_file" in options:
        found |= {
            "fs.gs.auth.service.account.enable": "true",
            "fs.gs.auth.service.account.json.keyfile": options["gs.service_account_file"],
        }
    if "abfs.account_key" in options:
        found |= {"fs.azure.account.auth.type": "SharedKey", "fs.azure.account.key": options["abfs.account_key"]}
    if "abfs.sas_token" in options:
        found |= {"fs.azure.account.auth.type": "SAS", "fs.azure.sas.fixed.token": options["abfs.sas_token"]}
    if "abfs.tenant_id" in options:
        found |= {
            "fs.azure.account.auth.type": "OAuth",
            "fs.azure.account.oauth.provider.type": "org.apache.hadoop.fs.azurebfs.oauth2.ClientCredsTokenProvider",
            "fs.azure.account.oauth2.client.endpoint": (
                f"https://login.microsoftonline.com/{options['abfs.tenant_id']}/oauth2/token"
            ),
            "fs.azure.account.oauth2.client.id": options["abfs.client_id"],
            "fs.azure.account.oauth2.client.secret": options["abfs.client_secret"],
        }
    return {name: value for name, value in found.items() if value is not None}


# delta-rs


def delta(path: str) -> dict[str, str] | None:
    """What delta-rs is to be told to open a table (its `storage_options`); None where no options are set for its store.

    Names: docs.rs/object_store (AmazonS3ConfigKey, GoogleConfigKey, AzureConfigKey), in capitals as delta-rs's own.
    """
    options = _of(path)
    if not options:
        return None
    if OF_SCHEME[scheme_of(path)] != "s3":
        return {_DELTA[name]: value for name, value in options.items()}
    s3 = _S3.of(options)
    server = s3.server
    if server and not s3.path_style:  # there, the bucket is part of the endpoint
        server = f"{path.partition('://')[2].partition('/')[0]}.{server}"
    found = {
        "AWS_ENDPOINT_URL": f"{s3.scheme}://{server}" if server else None,
        "AWS_ALLOW_HTTP": "true" if s3.scheme == "http" else None,
        "AWS_REGION": s3.region,
        "AWS_ACCESS_KEY_ID": options.get("access_key_id"),
        "AWS_SECRET_ACCESS_KEY": options.get("secret_access_key"),
        "AWS_SESSION_TOKEN": options.get("session_token"),
        "AWS_SKIP_SIGNATURE": "true" if s3.anonymous else None,
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": str(not s3.path_style).lower(),
    }
    return {name: value for name, value in found.items() if value is not None}


_DELTA = {
    "service_account_file": "GOOGLE_SERVICE_ACCOUNT",
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "sas_token": "AZURE_STORAGE_SAS_KEY",
    "tenant_id": "AZURE_STORAGE_TENANT_ID",
    "client_id": "AZURE_STORAGE_CLIENT_ID",
    "client_secret": "AZURE_STORAGE_CLIENT_SECRET",
}
