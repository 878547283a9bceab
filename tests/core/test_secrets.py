"""A secret is found by its name, its place and its value, and what is none stays as it is."""

from __future__ import annotations

import json
import logging
import re

import pytest

from i2e_pipeline.core import config, logs, secrets

SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    "key",
    [
        "fs.s3a.secret.key", "fs.s3a.access.key", "spark.hadoop.fs.s3a.session.token", "spark.ssl.keyPassword",
        "fs.azure.account.key.mine.blob.core.windows.net", "fs.azure.sas.box.mine.blob.core.windows.net",
        "fs.azure.account.oauth2.client.secret", "spark.authenticate.secret", "password", "api_token", "hf_token",
        "token",
        "spark.pwd", "spark.executorEnv.GITHUB_PAT", "spark.executorEnv.MYSQL_PWD", "spark.my.accessToken",
        "spark.my.githubToken", "db_pass", "client_secret", "api_key",
        "credentials", "passwd", "aws_access_key_id", "spark.my.credential",
    ],
)  # fmt: skip
def test_the_name_of_a_secret_tells_it(key: str) -> None:
    assert secrets.is_secret(key)
    assert secrets.without({"session": {"conf": {key: SECRET}}}) == {"session": {"conf": {key: "***"}}}
    assert secrets.found([{key: SECRET}]) == {SECRET}


@pytest.mark.parametrize(
    "key",
    ["key_column", "token_column", "max_tokens", "tokenizer", "text_template", "spark.sql.shuffle.partitions",
     "spark.executor.memory", "fs.s3a.endpoint", "fs.s3a.path.style.access", "keep_vectors"],
)  # fmt: skip
def test_what_is_no_secret_is_shown(key: str) -> None:
    assert not secrets.is_secret(key)
    assert secrets.without({key: "value"}) == {key: "value"}


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIAIOSFODNN7:{SECRET}@bucket/pairs: no such file",
        f"https://user:{SECRET}@host/x",
        f"https://a.blob.core.windows.net/c/f?sv=2024-11-04&sp=r&sig={SECRET}",
        f"https://b.s3.amazonaws.com/x?X-Amz-Expires=60&X-Amz-Signature={SECRET}",
        f"s3://bucket/x?access_key=AKIA&secret_key={SECRET}&region=eu",
        f"--conf spark.hadoop.fs.s3a.secret.key={SECRET} failed",
        f"{{'fs.s3a.secret.key': '{SECRET}'}}",
        f'{{"password": "{SECRET}"}}',
        f"fs.s3a.secret.key: {SECRET}",
        f"HF_TOKEN={SECRET}",
    ],
)
def test_a_secret_in_a_line_is_hidden(text: str) -> None:
    assert SECRET not in secrets.hide(text)
    assert "***" in secrets.hide(text)


_SPELLINGS = (
    "{key}={value}", "{key} = {value}", "{key}: {value}", "{key}='{value}'", "-D{key}={value}", 
    "--conf {key}={value} x",
    "--{key} {value}", "--{key}={value} failed", '{{"{key}":"{value}"}}', '{{"{key}": "{value}", "n": 1}}',
    "{{'{key}' : '{value}'}}", '"{{\\"{key}\\":\\"{value}\\"}}"', "a line\n{key}={value}\nanother", "({key}={value})",
    "a={key}={value}", "x;{key}={value};y",
)  # fmt: skip
_KEYS = (
    "password", "passwd", "pwd", "db.pwd", "api_key", "apiKey", "api-key", "javax.net.ssl.keyStorePassword",
    "AWS_SECRET_ACCESS_KEY", "GITHUB_PAT", "HF_TOKEN", "access_token", "accessToken", "client_secret", "token",
)  # fmt: skip


@pytest.mark.parametrize("key", _KEYS)
@pytest.mark.parametrize("value", [SECRET, "SEKRET", "hunter2", "sekret", "a+b/c==", "nothing-else", "no1knows"])
def test_a_secret_is_hidden_however_it_is_spelled(key: str, value: str) -> None:
    """Catches: -Djavax.net.ssl.keyStorePassword=SEKRET in config.yaml, {"api_key":"X"} in a message."""
    for spelling in _SPELLINGS:
        text = spelling.format(key=key, value=value)
        assert value not in secrets.hide(text), text
        assert value not in str(secrets.without({"session": {"conf": {"spark.x": text}}})), text
        assert value in secrets.found({"spark.x": text}), text


@pytest.mark.parametrize(
    "text",
    ["Authorization: Bearer {}", '{{"Authorization":"Basic {}"}}', "Proxy-Authorization: {}", 
     "curl -H 'authorization: token {}'",
     "sent bearer {}", "AWS_SECRET_ACCESS_KEY {}", "spark.hadoop.fs.s3a.secret.key   {}", "--password {} --user me"],
)  # fmt: skip
@pytest.mark.parametrize("value", [SECRET, "hunter2x"])
def test_a_secret_in_a_header_or_behind_a_blank_is_hidden(text: str, value: str) -> None:
    assert value not in secrets.hide(text.format(value))
    assert "***" in secrets.hide(text.format(value))


def test_the_working_folder_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/somebody/work")
    assert secrets.hide("in /home/somebody/work") == "in /home/somebody/work"


@pytest.mark.parametrize(
    "text",
    ["score.model=ViT-B-32: no such tag", "s3://bucket/pairs/0.parquet", "unexpected token: '<'", "key=00012 is twice",
     "its tokenizer gives token 49407", "api_token: no such setting, from --set; known here: output",
     "output: /etc/passwd: /etc/passwd is a file", "/etc/secrets/token: no such file", 
     "AWS_SECRET_ACCESS_KEY is not set",
     "HF_TOKEN needs a value", "s3.access_key_id is set without s3.secret_access_key", 
     "--password: expected one argument",
     "pass over what is there", "a path/pat: x", "Bearer of news", "give keys: s3.access_key_id, s3.secret_access_key",
     "look at storage.options: s3.access_key_id and s3.secret_access_key: give keys that may write there",
     "hf:x@random", "/data/a:b@c/d"],
)  # fmt: skip
def test_other_lines_stay_as_they_are(text: str) -> None:
    assert secrets.hide(text) == text


def test_a_secret_of_the_config_is_hidden_wherever_it_turns_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "_remembered", set())
    made = config.load(None, [f"session.conf.spark.hadoop.fs.s3a.secret.key={SECRET}", "session.conf.x.token=true"])
    assert made.session.conf["spark.hadoop.fs.s3a.secret.key"] == SECRET
    for shown in (config.dump(made), json.dumps(made.shown()), config.as_yaml(config.differing(made))):
        assert SECRET not in shown
    assert secrets.hide(f"403: the key {SECRET} is not known, true") == "403: the key *** is not known, true"
    with logs.to_terminal():
        logging.getLogger("i2e_pipeline.test").error("said by a server: %s.", SECRET)
    assert capsys.readouterr().err.endswith("said by a server: ***.\n")


def test_a_secret_of_the_environment_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert secrets.hide(f"signed with {SECRET}") == "signed with ***"


def test_an_error_does_not_quote_a_secret() -> None:
    with pytest.raises(config.ConfigError) as error:
        config.load(None, [f"session.conf.fs.s3a.secret.key=[{SECRET}]", f"evaluate.data.my.token={SECRET}", "a.b=1"])
    assert SECRET not in str(error.value)
    with pytest.raises(config.ConfigError) as error:
        config.load(None, [f"sesion.conf.fs.s3a.secret.key {SECRET}"])
    assert "write it as" in str(error.value)


def test_a_secret_is_in_no_fingerprint() -> None:
    """Catches: a token that is renewed every day, and a stage that is made again for it."""

    class Mine(config.Section):
        api_token: str = ""
        """A secret."""
        token_column: str = "t"
        """None."""

    one, other = Mine(api_token="one"), Mine(api_token="other")
    assert one.fingerprint() == other.fingerprint() == {"token_column": "t"}

    class Outer(config.Section):
        inner: Mine = Mine()
        """Settings within settings."""
        place: str = ""
        """An address."""

    nested = [Outer(inner=m, place=f"s3://k:{m.api_token}@b/x").fingerprint() for m in (one, other)]
    assert nested[0] == nested[1]
    assert SECRET not in str(Outer(place=f"s3://k:{SECRET}@b/x").fingerprint())
    assert Mine(token_column="u").fingerprint() != one.fingerprint()


def test_spark_is_told_the_same_kinds() -> None:
    told = re.compile(secrets.SPARK_REDACTION)
    assert told.search("spark.hadoop.fs.s3a.secret.key")
    assert told.search("spark.hadoop.fs.azure.account.key.x")
    assert told.search(f"s3://a:{SECRET}@b/c")
    assert not told.search("spark.executor.memory")
