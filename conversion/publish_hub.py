"""Sends a prepared repository folder to the Hub, and looks whether it arrived."""

import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from .operations import ConversionError
from .publish_config import PublishError
from .regular_files import open_regular

REPLACED = ["*.py", "*.safetensors", "*.safetensors.index.json", "hf_glm_ernie-*.whl"]
"""Files of an earlier upload that go where the new one does not have them: stale shards and code would be opened."""

IN_MEMORY_BYTES = 5 * 10**6
"""Of a file that is sent from memory; a larger one is LFS."""


def check_repo_name(repo: str, option: str = "--repo ") -> None:
    """Raises `PublishError` for what is not `OWNER/NAME` as the Hub allows it.

    Args:
        repo: The name.
        option: What it was given behind, for messages.
    """
    try:
        validate_repo_id(repo)
        problem = "" if repo.count("/") == 1 else "it has no owner"
    except HFValidationError as error:
        problem = str(error)
    if problem:
        raise PublishError(
            f"{option}{repo!r} is not OWNER/NAME: {problem}. For example: {option}my-name/glm-130b-int4"
        )


def require_token(option: str = "--push") -> str:
    """The token of this machine's user.

    Args:
        option: What needs it, for messages.

    Raises:
        PublishError: there is none, or the environment forbids the network.
    """
    if constants.HF_HUB_OFFLINE:
        raise PublishError(
            f"{option} needs the network, but HF_HUB_OFFLINE is set. Unset it and run the command again."
        )
    token = get_token()
    if token is None:
        raise PublishError(
            f"{option} needs a token with write access: run `hf auth login`, or set HF_TOKEN. Tokens are made at "
            "https://huggingface.co/settings/tokens. Nothing was sent."
        )
    return token


def push(folder: Path, repo: str, private: bool, sha256: Mapping[str, str], space_sdk: str | None = None) -> str:
    """Uploads the files that were checked, and no others; continues an upload that was cut off.

    Args:
        folder: A complete repository folder.
        repo: `OWNER/NAME`; made where it does not exist.
        private: Whether a repository that is made is private.
        sha256: File -> SHA-256, of every file to be sent: what `publish` returned.
        space_sdk: What a Space runs on, such as `"gradio"`; None for a repository of a model.

    Returns:
        The commit's address.

    Raises:
        PublishError: no token, refused by the Hub, interrupted, a file that is not the one that was checked, or the
            Hub has other files than were sent.
    """
    token = require_token()
    api = HfApi(token=token)
    repo_type = "model" if space_sdk is None else "space"
    again = f"hf upload {repo} {folder} ." + (" --repo-type space" if space_sdk else "")
    complete = f"The folder {folder} is complete"
    try:
        additions = [_addition(folder / name, digest) for name, digest in sorted(sha256.items())]
        api.create_repo(repo, private=private or None, exist_ok=True, repo_type=repo_type, space_sdk=space_sdk)
        stale = [
            CommitOperationDelete(path_in_repo=name)
            for name in api.list_repo_files(repo, repo_type=repo_type)
            if name not in sha256 and any(fnmatch.fnmatch(name, pattern) for pattern in REPLACED)
        ]
        message = f"Publish {folder.name}"
        done = api.create_commit(repo, [*stale, *additions], commit_message=message, repo_type=repo_type)
        _compare(api, repo, additions, repo_type)
    except KeyboardInterrupt as error:
        raise PublishError(f"interrupted while sending. {complete}; `{again}` goes on.") from error
    except (HTTPError, OfflineModeIsEnabled, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        raise PublishError(
            f"{api.endpoint}/{repo}: {error}. {complete}; run `{again}` once the cause is gone. "
            "The token needs write access to the owner's repositories."
        ) from error
    return str(done.commit_url)


def _addition(path: Path, digest: str) -> CommitOperationAdd:
    """A file to be sent: a small one as the bytes looked at here, a large one by its hash, which the Hub checks."""
    with open_regular(path) as file:
        content: bytes | str = str(path) if os.fstat(file.fileno()).st_size > IN_MEMORY_BYTES else file.read()
    addition = CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=content)
    if addition.upload_info.sha256.hex() != digest:
        raise PublishError(
            f"{path}: not the file that was checked (another SHA-256), so nothing was sent. Remove the folder and "
            "publish again."
        )
    return addition


def _compare(api: HfApi, repo: str, additions: Sequence[CommitOperationAdd], repo_type: str) -> None:
    """Holds what the Hub lists against what was sent."""
    entries = api.list_repo_tree(repo, recursive=True, repo_type=repo_type)
    listed = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    for addition in additions:
        name, sent = addition.path_in_repo, addition.upload_info
        entry = listed.get(name)
        if entry is None or entry.size != sent.size:
            raise ValueError(f"{name} did not arrive whole")
        stored = getattr(entry, "lfs", None)
        if stored is not None and stored.sha256 != sent.sha256.hex():
            raise ValueError(f"{name} arrived with another SHA-256 than it was sent with")


__all__ = ["check_repo_name", "push", "require_token"]
