"""What cannot be opened or written is said at the start, in one line that names the setting and the remedy."""

from __future__ import annotations

import errno
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs as pafs

from i2e_pipeline import stages
from i2e_pipeline.core import files, places, stores
from i2e_pipeline.core.errors import ExitCode, I2EError

KEYS = {"s3.access_key_id": "AKIAOFATEST", "s3.secret_access_key": "a-secret-of-a-test"}


@pytest.fixture
def options() -> Iterator[dict[str, str]]:
    before = stores.in_use()
    yield dict(KEYS)
    stores.use(before)


def test_a_server_that_cannot_be_reached_is_said_of_its_setting(options: dict[str, str]) -> None:
    """Catches: a traceback of pyarrow's, after which nobody knows that it is of s3.endpoint."""
    stores.use(options | {"s3.endpoint": "http://127.0.0.1:1"}, [("output", "s3://b/out"), ("pairs.path", "s3://p/x")])
    with pytest.raises(stores.StoreFault, match=r"output: s3://b/out cannot be opened: .*storage.options: s3.endpoint"):
        places.refuse_closed("s3://b/out", "output")
    with pytest.raises(
        stores.StoreFault, match=r"pairs.path: s3://p/x cannot be opened: .*storage.options: s3.endpoin"
    ):
        files.find(["s3://p/x"], "")
    said = str(stores.fault("curlCode: 35, SSL connect error", "s3://b/out", "output"))
    assert said.endswith("storage.options: s3.endpoint: name its server, with http:// where it speaks no TLS")


def test_a_server_that_says_nothing_is_not_waited_for_long(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_PATIENCE", 1.0)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        stores.use(options | {"s3.endpoint": f"http://127.0.0.1:{deaf.getsockname()[1]}"})
        began = time.monotonic()
        with pytest.raises(stores.StoreFault, match="does not answer within 1 seconds"):
            places.refuse_closed("s3://b/out", "output")
        assert time.monotonic() - began < 4


def test_a_client_that_is_not_installed_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Unable to load libjvm\ndlopen(/usr/lib/jvm/libjvm.so) failed\ndlopen(/usr/lib/libjvm.so) failed"
    told = str(stores.fault(OSError(said), "hdfs://h/out", "output"))
    assert told.startswith("output: hdfs://h/out cannot be opened: Unable to load libjvm; set JAVA_HOME")
    assert "\n" not in told


@pytest.mark.parametrize(
    ("said", "is_of_a_store"),
    [
        ("When getting information for key 'x' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject", True),
        ("Generic S3 error: error sending request for url (http://127.0.0.1:1/b)", True),
        ("Unable to load libhdfs", True),
        ("Couldn't deserialize thrift: TProtocolException", False),
    ],
)
def test_an_error_in_the_middle_of_a_run_is_known_for_a_store_s(
    options: dict[str, str], said: str, is_of_a_store: bool
) -> None:
    stores.use(options, [("output", "s3://out/o"), ("pairs.path", "s3://b/x")])
    told = stores.later_fault(OSError(said))
    assert (told is not None) == is_of_a_store
    if "bucket 'b'" in said:
        assert str(told).startswith("pairs.path: s3://b/x cannot be opened")
    assert stores.later_fault(ValueError(said)) is None


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_an_output_that_a_file_stands_in_the_way_of_is_refused(tmp_path: Path, below: str) -> None:
    """Catches: NotADirectoryError out of pyarrow, and a doctor that says ok."""
    (tmp_path / "file").write_text("x")
    config = stages.load(None, [f"output={tmp_path}/file{below}"])
    with pytest.raises(places.PlaceError, match=rf"^output: .*{tmp_path}/file is a file: name a folder"):
        stages.pipeline(config)


@pytest.mark.parametrize("output", ["/proc/x", "/proc/self/x", "/dev/null/x"])
def test_an_output_that_cannot_be_written_is_refused(output: str) -> None:
    with pytest.raises(I2EError, match=rf"^output: {output}.* name a folder"):
        places.refuse_unwritable(output, "output")


def test_an_output_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    places.refuse_closed(str(tmp_path / "out"), "output")
    assert not (tmp_path / "out").exists()
    places.refuse_unwritable(str(tmp_path / "out"), "output")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_the_machine_refuses_later_is_one_line() -> None:
    told = places.later_fault(OSError(errno.ENOSPC, "No space left on device", "/data/x"))
    assert str(told).startswith("/data/x: No space left on device: free some space")
    assert places.later_fault(OSError(errno.ENOENT, "No such file", "x")) is None
    with (
        pytest.raises(OSError, match="No space") as error,
        pafs.LocalFileSystem().open_output_stream("/dev/full") as stream,
    ):
        stream.write(b"x" * 100_000)
    assert places.later_fault(error.value) is not None


def in_the_way(folder: Path, what: str) -> None:
    """Meets a file in a folder's place, or a folder in a file's, as a command does."""
    (folder / "file").write_text("x")
    (folder / "folder").mkdir()
    if what == "list":
        files.list_files(str(folder / "file"))
    elif what == "below":
        files.write_bytes(str(folder / "file" / "a"), b"x")
    elif what == "mkdir":
        (folder / "file").mkdir(parents=True, exist_ok=True)
    elif what == "read":
        files.read_bytes(str(folder / "folder"))
    elif what == "open":
        (folder / "folder").read_text()
    elif what == "replace":
        (folder / "folder" / "a").write_text("x")
        files.write_bytes(str(folder / "folder"), b"x")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("list", "file: a file is where a folder is wanted|/file'.*: a file is where a folder is wanted"),
        ("below", "a file is where a folder is wanted: move it"),
        ("mkdir", "/file: a file is where a folder is wanted: move it"),
        ("read", "/folder is a folder, and a file is wanted there: move it"),
        ("open", "/folder is a folder, and a file is wanted there: move it"),
        ("replace", "/folder is a folder, and a file is wanted there: move it"),
    ],
)
def test_what_lies_in_the_way_is_a_sentence_wherever_it_is_met(what: str, says: str, tmp_path: Path) -> None:
    """Catches: a traceback of "[Errno 20] Not a directory" where somebody left a file."""
    with pytest.raises(OSError, match=r"\w") as met:
        in_the_way(tmp_path, what)
    told = places.later_fault(met.value)
    assert isinstance(told, places.InTheWay)
    assert told.exit_code == ExitCode.MISTAKE
    assert re.search(says, str(told))
    assert places.later_fault(FileExistsError(errno.EEXIST, "File exists", str(tmp_path / "folder"))) is None


def test_a_full_disk_is_named_whatever_writes(tmp_path: Path) -> None:
    """Catches: "No space left on device", of which nobody knows where."""
    for said in ("Error writing bytes to file", "No space left on device"):
        with pytest.raises(OSError, match="No space left") as raised, files.fresh_file(tmp_path / "out"):
            raise OSError(errno.ENOSPC, said)
        assert str(places.later_fault(raised.value)).startswith(f"{tmp_path}/out: No space left on device: free some")
    with pytest.raises(ConnectionResetError) as other, files.fresh_file(tmp_path / "out"):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert other.value.filename is None
