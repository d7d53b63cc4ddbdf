"""A repository on the Hub as the target of a conversion: a commit for each shard, one for all that is small.

A commit is all or nothing, and the Hub tells the SHA-256 of what is in it: so a run that goes on needs nothing but the
Hub's own list. huggingface_hub can also send files first and commit them all together at the end
(`preupload_lfs_files`), but what was sent so is known to the process alone that sent it, and may be cleared away.
Until the last commit the repository has no config.json, so nobody opens it half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from .publish import GITATTRIBUTES
from .publish_hub import check_repo_name, require_token
from .target import Target
from .writer import WriteError

ATTRIBUTES = ".gitattributes"
"""Every repository has it; it says which files are LFS."""


class HubTarget(Target):
    """A repository of a model.

    Args:
        url: `hf://OWNER/NAME` or `hf://models/OWNER/NAME`.
        private: Whether it is private, if it is made.

    Raises:
        PublishError: an impossible name.
    """

    def __init__(self, url: str, private: bool = False) -> None:
        super().__init__(url)
        self.repo = self.url.partition("://")[2].removeprefix("models/")
        self._private = private
        check_repo_name(self.repo, f"--output {self.scheme}://")

    @cached_property
    def api(self) -> HfApi:
        """The Hub, with this machine's token."""
        return HfApi(token=require_token("--output hf://"))

    def check(self) -> None:
        """Makes sure that there is a token, and that it may write."""
        who = self.asked(lambda: self.api.whoami(), "the token is not accepted")
        role = who.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise WriteError(
                f"{self.url}: the token may only read. Make one with write access at "
                "https://huggingface.co/settings/tokens. Nothing was sent."
            )

    def prepare(self) -> None:
        """Makes the repository; its first commit shows whether the token may write."""
        self.asked(
            lambda: self.api.create_repo(self.repo, private=self._private or None, exist_ok=True),
            "the repository cannot be made",
        )
        content = GITATTRIBUTES.encode()
        if not self._is_same(self._listed().get(ATTRIBUTES), content):
            digest = hashlib.sha256(content).hexdigest()
            self._commit({ATTRIBUTES: content}, {ATTRIBUTES: digest}, "Prepare for the weights")

    def names(self) -> set[str]:
        """Files of the repository, if there is one."""
        return set(self._listed()) - {ATTRIBUTES}

    def _listed(self) -> dict[str, RepoFile]:
        def request() -> dict[str, RepoFile]:
            if not self.api.repo_exists(self.repo):
                return {}
            entries = self.api.list_repo_tree(self.repo, recursive=True)
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return self.asked(request, "its files cannot be listed")

    def holds(self, name: str, sha256: str, path: Path | None) -> bool:
        """By the SHA-256 of what is LFS, and git's own hash of what is not."""
        entry = self._listed().get(name)
        if entry is None:
            return False
        if entry.lfs is not None:
            return entry.lfs.sha256 == sha256
        return path is not None and entry.blob_id == git_hash(path.read_bytes())

    def send(self, path: Path, name: str, sha256: str, on_bytes: Callable[[int], object]) -> None:
        """Sends a shard, in a commit of its own."""
        self._commit({name: str(path)}, {name: sha256}, f"Add {name}")
        if not self.holds(name, sha256, path):
            raise WriteError(f"{self.url}: {name} did not arrive as it was sent. Run the same command again.")
        on_bytes(path.stat().st_size)

    def send_small(self, folder: Path, names: Sequence[str], sha256: dict[str, str]) -> None:
        """Sends all small files, in one commit."""
        listed = self._listed()
        content = {name: (folder / name).read_bytes() for name in names}
        new = {name: data for name, data in content.items() if not self._is_same(listed.get(name), data)}
        if new:
            self._commit(new, sha256, "Add settings, tokenizer and card: the model is complete")

    def _is_same(self, entry: RepoFile | None, data: bytes) -> bool:
        if entry is None:
            return False
        if entry.lfs is not None:
            return bool(entry.lfs.sha256 == hashlib.sha256(data).hexdigest())
        return bool(entry.blob_id == git_hash(data))

    def _commit(self, content: dict[str, bytes] | dict[str, str], sha256: dict[str, str], message: str) -> None:
        def request() -> None:
            additions = [CommitOperationAdd(name, one) for name, one in content.items()]  # a commit uses them up
            for addition in additions:
                if addition.upload_info.sha256.hex() != sha256[addition.path_in_repo]:
                    raise WriteError(
                        f"{addition.path_in_repo}: not the file that was verified (another SHA-256), so it is not "
                        "sent. Run the same command again."
                    )
            self.api.create_commit(self.repo, additions, commit_message=message)

        self.asked(request, f"{', '.join(content)} cannot be sent")

    def remove(self, names: Collection[str]) -> None:
        """Removes files, in one commit; the repository stays."""
        deletions = [CommitOperationDelete(name) for name in sorted(names)]
        self.asked(
            lambda: self.api.create_commit(self.repo, deletions, commit_message="Remove what is not whole"),
            "what was sent cannot be removed",
        )


def git_hash(data: bytes) -> str:
    """Git's name of a content: the SHA-1 of its length and itself."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


__all__ = ["HubTarget", "git_hash"]
