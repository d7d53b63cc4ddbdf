"""Downloads that are not finished, told from what their programs leave beside a file or instead of it.

aria2 keeps `X.aria2` beside X, which may have its full size from the first second; wget, curl and browsers write
`X.part`, `X.crdownload` and the like; huggingface_hub writes `*.incomplete` in `.cache/huggingface/download` of the
folder, or in `blobs` of its cache, and keeps a lock under the file's name until it is there.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from .archive_parts import UNFINISHED
from .inspect_report import ERROR, WARNING, Finding, Stretch
from .output_path import INCOMPLETE
from .places import Place
from .tensor_names import entries

HUB_DOWNLOADS = Path(".cache", "huggingface", "download")
WAIT = "Wait for the download, or start it again: downloaders go on where they were."


def unfinished_in(folder: Place) -> dict[str, str]:
    """Name of a file -> the file of its download that lies in a folder.

    Args:
        folder: The folder; nothing is looked for in archives.
    """
    if not isinstance(folder, Path) or not folder.is_dir():
        return {}
    found: dict[str, str] = {}
    for name in entries(folder):
        ending = next((ending for ending in UNFINISHED if name.endswith(ending) and name != ending), None)
        if ending is not None and (folder / name).is_file():
            found[name.removesuffix(ending)] = name
    return found | dict(_of_the_hub(folder, found))


def _of_the_hub(folder: Path, found: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    downloads = folder / HUB_DOWNLOADS
    begun = [path.name for path in downloads.glob(f"*{INCOMPLETE}")] if downloads.is_dir() else []
    if begun:
        locked = [path.name.removesuffix(".lock") for path in sorted(downloads.glob("*.lock"))]
        waiting = [name for name in locked if not (folder / name).exists() and name not in found]
        yield from ((name, str(HUB_DOWNLOADS / begun[0])) for name in waiting)
        if not waiting:
            yield "", str(HUB_DOWNLOADS / begun[0])
    if folder.parent.name == "snapshots":
        for path in sorted((folder.parent.parent / "blobs").glob(f"*{INCOMPLETE}")):
            yield "", f"blobs/{path.name}"


def findings_on(unfinished: Mapping[str, str], within: str = "") -> list[Finding]:
    """A finding for each; a warning where nobody can tell which file it is of.

    Args:
        unfinished: As `unfinished_in` gives it.
        within: What the folder is called in the report, with a slash behind it.
    """
    return [
        Finding(
            "downloading",
            f"still being downloaded: {within}{beside} is there" if name else f"a download is not finished: {beside}",
            (Stretch(within + (name or beside)),),
            ERROR if name else WARNING,
            remedy=WAIT,
        )
        for name, beside in unfinished.items()
    ]


__all__ = ["findings_on", "unfinished_in"]
