"""Uploads an export in Hugging Face's layout to the Hub."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from i2e_pipeline.core import files
from i2e_pipeline.core.errors import ExitCode, I2EError
from i2e_pipeline.export.hugging_face import FOLDERS

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_CLIENTS = ("huggingface_hub", "hf_xet", "httpx", "httpx2", "requests")
"""Packages whose errors are about the Hub, and not of this code."""


class HubError(I2EError, RuntimeError):
    """What the Hub, or its client, does not do; the message says the way out."""

    exit_code = ExitCode.FAULT


def ready(repo: str, folder: str) -> HfApi:
    """The client of the Hub. Raises HubError where nothing could be uploaded, ModuleNotFoundError without the client:
    before an export takes hours."""
    from huggingface_hub import HfApi, get_token

    if not _REPO.fullmatch(repo):
        raise HubError(f"--push-to-hub {repo}: name a repository as ORG/NAME")
    if not files.is_local(folder):
        raise HubError(f"--push-to-hub reads a folder of this machine, and --to is {folder}: name one here")
    if get_token() is None:
        raise HubError(f"--push-to-hub {repo}: there is no token of the Hub here: `hf auth login`, or set HF_TOKEN")
    return HfApi()


def push(api: HfApi, target: str, repo: str, private: bool, message: str, leave: tuple[str, ...]) -> str:
    """Make the repository hold the export that lies in `target`, in one commit. Returns its address.

    Files of an earlier export that this one has not go in that commit, so that no reader sees both. What was uploaded
    before a failure is not sent again.
    """
    try:
        made = api.create_repo(repo, repo_type="dataset", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=files.open_filesystem(target)[1],
            commit_message=message,
            ignore_patterns=list(leave),
            delete_patterns=[f"{folder}/*" for folder in FOLDERS],
        )
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS and not isinstance(error, OSError):
            raise
        raise HubError(
            f"--push-to-hub {repo}: the Hub did not take it ({' '.join(str(error).split())}). The export is whole, in "
            f"{target}: the same command goes on with the upload"
        ) from error
    return str(made)
