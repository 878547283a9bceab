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
    "uri", ["/disk/x", "file:///disk/x", "hdfs://host/x", "gs://bucket/x", "s3://bucket/x?region=eu", "s3://KEY:S@b/x"]
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
