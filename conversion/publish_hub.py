"""Sends a prepared repository folder to the Hub, and looks whether it arrived."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from .publish_source import PublishError

REPLACED = ["*.py", "*.safetensors", "*.safetensors.index.json"]
"""Files of an earlier upload that go where the new one does not have them: stale shards and code would be opened."""


def check_repo_name(repo: str) -> None:
    """Raises `PublishError` for what is not `OWNER/NAME` as the Hub allows it."""
    try:
        validate_repo_id(repo)
        problem = "" if repo.count("/") == 1 else "it has no owner"
    except HFValidationError as error:
        problem = str(error)
    if problem:
        raise PublishError(f"--repo {repo!r} is not OWNER/NAME: {problem}. For example: --repo my-name/glm-130b-int4")


def require_token() -> str:
    """The token of this machine's user.

    Raises:
        PublishError: there is none, or the environment forbids the network.
    """
    if constants.HF_HUB_OFFLINE:
        raise PublishError("--push needs the network, but HF_HUB_OFFLINE is set. Unset it and run the command again.")
    token = get_token()
    if token is None:
        raise PublishError(
            "--push needs a token with write access: run `hf auth login`, or set HF_TOKEN. Tokens are made at "
            "https://huggingface.co/settings/tokens. Nothing was sent."
        )
    return token


def push(folder: Path, repo: str, private: bool, sha256: Mapping[str, str]) -> str:
    """Uploads a folder; continues an upload that was cut off.

    Args:
        folder: A complete repository folder.
        repo: `OWNER/NAME`; made where it does not exist.
        private: Whether a repository that is made is private.
        sha256: File -> SHA-256, to be compared with what the Hub has afterwards.

    Returns:
        The commit's address.

    Raises:
        PublishError: no token, refused by the Hub, interrupted, or the Hub has other files than were sent.
    """
    token = require_token()
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"Publish {folder.name}", delete_patterns=REPLACED
        )
        _compare(api, repo, folder, sha256)
    except KeyboardInterrupt as error:
        raise PublishError(
            f"interrupted while sending. The folder {folder} is complete; `hf upload {repo} {folder} .` goes on."
        ) from error
    except (HTTPError, OfflineModeIsEnabled, ValueError) as error:
        raise PublishError(
            f"{api.endpoint}/{repo}: {error}. The folder {folder} is complete; run `hf upload {repo} {folder} .` once "
            "the cause is gone. The token needs write access to the owner's repositories."
        ) from error
    return str(done.commit_url)


def _compare(api: HfApi, repo: str, folder: Path, sha256: Mapping[str, str]) -> None:
    """Holds what the Hub lists against what was sent."""
    listed = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True) if isinstance(entry, RepoFile)}
    for path in sorted(folder.iterdir()):
        entry = listed.get(path.name)
        if entry is None or entry.size != path.stat().st_size:
            raise ValueError(f"{path.name} did not arrive whole")
        stored = getattr(entry, "lfs", None)
        if stored is not None and path.name in sha256 and stored.sha256 != sha256[path.name]:
            raise ValueError(f"{path.name} arrived with another SHA-256 than it was sent with")


__all__ = ["check_repo_name", "push", "require_token"]
