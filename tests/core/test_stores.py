"""One set of options, as pyarrow, Hadoop and delta-rs want to be told it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pyarrow import fs as pafs

from i2e_pipeline.core import config, files, secrets, stores

SECRET = "wJalrXUtnFEMI-of-a-store"
MINIO = {"s3.endpoint": "http://127.0.0.1:9000", "s3.access_key_id": "AKIA0STORE", "s3.secret_access_key": SECRET}
PRINCIPAL = {"abfs.tenant_id": "t", "abfs.client_id": "c", "abfs.client_secret": SECRET}
ABFS = "abfs://box@account.dfs.core.windows.net/i2e"


@pytest.fixture(autouse=True)
def _no_options_after() -> Iterator[None]:
    yield
    stores.use({})


def overrides(options: dict[str, str]) -> list[str]:
    return [f"storage.options.{name}={value}" for name, value in options.items()]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"s3.endpiont": "http://x"}, "s3.endpiont is no option of a store; known are s3.endpoint"),
        ({"endpoint": "http://x"}, "endpoint is no option"),
        ({"s3.region": ""}, "s3.region is empty"),
        ({"s3.path_style": "yes"}, "s3.path_style: 'yes' is not allowed"),
        ({"s3.endpoint": "127.0.0.1:9000"}, "s3.endpoint is not allowed"),
        ({"s3.endpoint": f"http://user:{SECRET}@host"}, "s3.endpoint is not allowed"),
        ({"s3.secret_access_key": SECRET}, "s3.secret_access_key is set without s3.access_key_id"),
        ({"s3.session_token": SECRET}, "s3.session_token is set without"),
        (MINIO | {"s3.anonymous": "true"}, "s3.access_key_id and s3.anonymous are both set"),
        (PRINCIPAL | {"abfs.sas_token": SECRET}, "abfs.sas_token and abfs.tenant_id are both set"),
        ({"abfs.client_id": "c"}, "abfs.client_id is set without abfs.tenant_id, abfs.client_secret"),
    ],
)
def test_options_that_do_not_fit_are_refused_without_a_secret(options: dict[str, str], said: str) -> None:
    with pytest.raises(config.ConfigError, match=r"storage\.options: ") as refused:
        config.load(None, overrides(options))
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("name", [n for n in stores.OPTIONS if n.endswith(("_key", "_key_id", "token", "secret"))])
def test_secret_options_are_known_as_secrets(name: str) -> None:
    assert secrets.is_secret(name)


ADDRESSES = [
    f"s3://AKIA0STORE:{SECRET}@bucket/x",
    f"s3://AKIA0STORE:{SECRET}/with/slashes@bucket/x",
    f"s3://AKIA0STORE:{SECRET}@bucket/x?region=eu",
    f"s3://bucket/x?X-Amz-Signature={SECRET}",
    f"s3://bucket/x?region=eu&secret_key={SECRET}",
    f"gs://bucket/x?X-Goog-Signature={SECRET}",
    f"abfs://box@account.dfs.core.windows.net/x?sv=2024-11-04&sig={SECRET}",
    f"https://user:{SECRET}@host/x",
    f"https://{SECRET}@host/x",
    f"https://account.blob.core.windows.net/box/x?sp=r&sig={SECRET}",
    f"hdfs://user:{SECRET}@host:8020/x",
]
PATHS = (
    "output", "pairs.path", "pairs.image_root", "knowledge_base.dump", "knowledge_base.popularity",
    "knowledge_base.anchors", "knowledge_base.importance", "knowledge_base.redirects", "extract.recognizer",
    "label.calibration", "link.weights", "train.dataset", "train.folder", "train.loss.teacher",
    "train.reinforce.folder", "evaluate.folder",
    "evaluate.data.gpr1200", "session.shared_folders", "fetch.folder",
)  # fmt: skip


@pytest.mark.parametrize("uri", ADDRESSES)
def test_an_address_with_a_secret_in_it_is_refused_without_the_secret(uri: str) -> None:
    """Catches: a key that is written into units, journals and manifests, as a part of a path."""
    for setting in PATHS:
        with pytest.raises(config.ConfigError) as refused:
            config.load(None, [f"{setting}={uri}"])
        assert str(refused.value).startswith(f"{setting}")
        assert "leave it out, and give it by" in str(refused.value)
        assert "from --set" in str(refused.value)
        assert SECRET not in str(refused.value)
    with pytest.raises(files.StoreError, match="leave it out, and give it by") as unopened:
        files.open_filesystem(uri)
    assert SECRET not in str(unopened.value)
    assert SECRET not in secrets.hide(f"cannot open {uri}: 403")
    with pytest.raises(config.ConfigError) as unread:
        config.load(uri)
    assert SECRET not in str(unread.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a@b:c/x", "s3://bucket/x?region=eu-1", "hdfs://user@host:8020/a@b", "hdfs://host:8020/a@b", ABFS,
        "/data/k:v@x/y?a=1", "file:///data/k:v@x", "gs://bucket/signature=1/x", "s3://bucket/token/x",
        "s3://bucket/x?endpoint_override=127.0.0.1:9000&scheme=http",
    ],
)  # fmt: skip
def test_an_address_without_a_secret_is_taken(uri: str) -> None:
    assert config.load(None, [f"knowledge_base.dump={uri}"]).knowledge_base.dump == uri
    assert secrets.hide(f"{uri}: no such file") == f"{uri}: no such file"
    assert config.load(None, ["knowledge_base.dump=/data/x?sig=1"]).knowledge_base.dump == "/data/x?sig=1"


def test_an_output_has_no_options_of_its_own() -> None:
    """Catches: `s3://bucket/out?region=eu/i2e`, a region of that name."""
    with pytest.raises(
        config.ConfigError, match=r"output: a folder whose address ends with options .*storage\.options"
    ):
        config.load(None, ["output=s3://bucket/out?region=eu"])
    assert config.load(None, ["output=/data/what?a=b"]).output == "/data/what?a=b"


def test_options_are_in_no_fingerprint_and_no_written_config() -> None:
    """Catches: everything made again, because somebody's key was changed."""
    plain, told = config.load(), config.load(None, overrides(MINIO))
    assert told.storage.fingerprint() == plain.storage.fingerprint()
    assert SECRET not in config.dump(told)
    assert "http://127.0.0.1:9000" in config.dump(told)
    assert secrets.hide(f"the key is {SECRET}") == "the key is ***"


def test_each_client_is_told_the_same_of_s3() -> None:
    config.load(None, overrides(MINIO))
    opened, inner = files.open_filesystem("s3://bucket/a b/50%")
    assert inner == "bucket/a b/50%"
    assert opened.equals(
        pafs.S3FileSystem(
            access_key="AKIA0STORE", secret_key=SECRET, region="us-east-1", scheme="http",
            endpoint_override="127.0.0.1:9000",
        )
    )  # fmt: skip
    assert stores.hadoop(MINIO) == {
        "fs.s3a.endpoint": "http://127.0.0.1:9000",
        "fs.s3a.endpoint.region": "us-east-1",
        "fs.s3a.connection.ssl.enabled": "false",
        "fs.s3a.path.style.access": "true",
        "fs.s3a.access.key": "AKIA0STORE",
        "fs.s3a.secret.key": SECRET,
    }
    assert stores.delta("s3://bucket/t") == {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIA0STORE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
    }


def test_a_bucket_may_be_a_part_of_the_servers_name() -> None:
    options = {"s3.endpoint": "https://store.example", "s3.path_style": "false", "s3.anonymous": "true"}
    config.load(None, overrides(options))
    assert stores.hadoop(options)["fs.s3a.path.style.access"] == "false"
    told = stores.delta("s3://bucket/t")
    assert told is not None
    assert told["AWS_ENDPOINT_URL"] == "https://bucket.store.example"
    assert told["AWS_SKIP_SIGNATURE"] == "true"
    assert "AWS_ALLOW_HTTP" not in told


def test_azure_is_opened_as_hadoop_names_it() -> None:
    config.load(None, overrides({"abfs.account_key": "a2V5"}))
    opened, inner = files.open_filesystem(ABFS)
    assert isinstance(opened, pafs.AzureFileSystem)
    assert inner == "box/i2e"
    assert stores.delta(ABFS) == {"AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}
    with pytest.raises(files.StoreError, match="write it as abfs://CONTAINER@ACCOUNT"):
        files.open_filesystem("abfs://box/i2e")
    assert stores.hadoop(PRINCIPAL)["fs.azure.account.oauth2.client.endpoint"] == (
        "https://login.microsoftonline.com/t/oauth2/token"
    )


@pytest.mark.parametrize(
    "uri", ["/disk/x", "file:///disk/x", "hdfs://host/x", "gs://bucket/x", "s3://bucket/x?region=eu"]
)
def test_other_stores_and_uris_that_say_it_themselves_are_as_before(uri: str) -> None:
    config.load(None, overrides(MINIO))
    assert stores.filesystem(uri) is None
    assert stores.delta(uri) is None


def test_without_options_a_clients_own_environment_holds() -> None:
    """Catches: options of the config before, in a process that reads two."""
    config.load(None, overrides(MINIO))
    config.load()
    assert stores.in_use() == {}
    assert stores.filesystem("s3://bucket/x") is None
    assert stores.delta("s3://bucket/x") is None
    assert stores.hadoop({}) == {}


def test_a_child_process_has_the_options() -> None:
    config.load(None, overrides(MINIO))
    program = "from i2e_pipeline.core import stores; import json; print(json.dumps(stores.in_use()))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert json.loads(said.stdout) == MINIO
