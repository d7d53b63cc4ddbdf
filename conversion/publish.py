"""Turns a model folder into a Hub repository that opens with transformers alone.

`publish` takes a folder a converter or `save_pretrained` wrote and makes another beside it: the same weights (linked,
so that 260 GB are not copied), configuration files that name the classes, the few files those classes are in, a model
card. Before the folder gets its name, another process that cannot see this package opens it, and what it computes is
compared with what this package computes from the folder it was made of, and with what the model computed when it was
converted.

In order: look (`publish_source`), plan, build (`publish_folder`), check (`publish_comparing`), card (`publish_card`),
and only where asked for, push (`publish_hub`). The result is a list of files and their SHA-256; that list is sent.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from . import publish_comparing
from .folder_files import RECORD, count, write_code, write_json
from .interruption import interruptible
from .job import Progress, progress_bar
from .json_files import read_json
from .output_path import incomplete_of
from .publish_card import CardTexts, model_card
from .publish_check import FULL, STRUCTURE
from .publish_classes import license_of, remote_classes
from .publish_comparing import CheckRow
from .publish_folder import CARD, Building, is_left_behind, refuse_published
from .publish_hub import check_repo_name
from .publish_source import PublishError, Source, read_source
from .publish_trial import trial_memory
from .regular_files import BLOCK_BYTES, open_regular, real_place
from .source_file import FileState

CHECKS = ("auto", FULL, STRUCTURE)
SPARE_BYTES = 2**30
LARGE_TEXT_BYTES = 10 * 10**6
"""The Hub takes a larger file as LFS only."""

GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in ("bin", "model", "pt", "safetensors")
)


@dataclass(frozen=True)
class Publication:
    """A repository that is fully planned.

    Attributes:
        source: What it is made of.
        repo: `OWNER/NAME`.
        output: Folder to be made; absolute.
        texts: What the card says that only the publisher knows.
        mode: Kind of check, `FULL` or `STRUCTURE`.
        why: What decided on it.
        links: Whether the weights are hard links.
        classes: `auto_map` of config.json.
        notices: What the user should know, one line each.
    """

    source: Source
    repo: str
    output: Path
    texts: CardTexts
    mode: str
    why: str
    links: bool
    classes: Mapping[str, str] = field(default_factory=dict)
    notices: Sequence[str] = ()

    @property
    def tokenizer_class(self) -> str | None:
        """`file.Class` of the tokenizer the repository carries."""
        return self.source.row.tokenizer if self.classes and self.source.has_tokenizer else None

    def describe(self) -> str:
        """The plan in a few lines."""
        source = self.source
        nbytes, files = source.nbytes, count(len(source.weights), "weight file")
        how = "linked, no further disk" if self.links else "COPIED: links are not possible there"
        code = ", ".join(self.classes) if self.classes else "none needed, transformers has the classes"
        reference = "nothing: what it computed then was not kept, so the code is compared with itself"
        if source.reference is not None:
            reference = f"what it computed then, with {source.reference.versions}"
        lines = [
            f"{source.folder} -> {self.repo}",
            f"  folder       {self.output}",
            f"  weights      {files}, {nbytes:,} bytes, {how}",
            f"  code for     {code}",
            f"  check        {self.mode}: {self.why}",
            f"  conversion   {reference}",
        ]
        if source.left_out:
            lines.append(f"  left out     {', '.join(source.left_out)}")
        lines += [f"  left out of  {keys}" for keys in source.left_out_keys]
        return "\n".join([*lines, *(f"  note: {notice}" for notice in self.notices)])


def plan_publication(
    folder: Path, repo: str, output: Path | None, texts: CardTexts | None = None, check: str = "auto"
) -> Publication:
    """Looks at everything that can be seen to fail before anything is made.

    Args:
        folder: What to publish.
        repo: `OWNER/NAME`.
        output: Folder to be made; None for `<folder>_hub`.
        texts: For the card; None for the model type's licence and nothing else.
        check: One of `CHECKS`.

    Raises:
        PublishError: the folder, the name or the disk will not do.
        ConversionError: something in the folder will not do, or the output exists.
    """
    check_repo_name(repo)
    source = read_source(folder)
    output = default_output(folder) if output is None else output.absolute()
    refuse_published(output)
    if output.resolve().is_relative_to(source.folder):
        raise PublishError(f"{output}: lies inside {folder}. Choose an --output beside it.")
    building = incomplete_of(output)
    notices = [f"{building}, left by a run that was killed, is cleared"] if is_left_behind(building) else []
    existing = next(parent for parent in output.parents if parent.exists())
    links = all(existing.stat().st_dev == identity.device for identity in source.weights.values())
    if not links:
        _check_disk(source, output)
    mode, why = _choose_check(check, source)
    if texts is None:
        texts = CardTexts(license_of(source.row, source.config))
    classes = remote_classes(source.row, source.quant_method)
    return Publication(source, repo, output, texts, mode, why, links, classes, notices)


def default_output(folder: Path) -> Path:
    """Where the repository's folder goes unless told otherwise: beside the source."""
    folder = folder.resolve()
    if not folder.name:
        raise PublishError(f"{folder}: not a model folder. Give the folder that a converter or save_pretrained wrote.")
    return folder.with_name(f"{folder.name}_hub")


def _check_disk(source: Source, output: Path) -> None:
    existing = next(parent for parent in output.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if source.nbytes + SPARE_BYTES > free:
        raise PublishError(
            f"{output}: the weights of {source.folder} cannot be linked there, so {source.nbytes:,} bytes are to be "
            f"copied and {free:,} are free. Choose an --output on the same file system; there they are linked."
        )


def _choose_check(check: str, source: Source) -> tuple[str, str]:
    needed, free = trial_memory(source.nbytes)
    if check != "auto":
        return check, "as asked for"
    if needed <= free:
        return FULL, "opened and computed with in a fresh process, without this package"
    return STRUCTURE, (
        f"names, shapes and kinds of number in a fresh process, without this package; computing takes about "
        f"{needed:,} bytes of memory and {free:,} are free"
    )


def publish(publication: Publication, show_progress: bool = True) -> dict[str, str]:
    """Makes the repository's folder; either it is complete and checked, or it is not there.

    Args:
        publication: The plan.
        show_progress: Whether bars go to stderr.

    Returns:
        File -> SHA-256, of every file of the folder.

    Raises:
        PublishError: a file changed since its conversion or since the plan, the disk is full, or the folder does not
            open or compute as it should.
    """
    source = publication.source
    about = {"repo": publication.repo, "source": str(source.folder)}
    with (
        interruptible(),
        explained(publication.output),
        Building(publication.output, list(source.weights), about) as building,
    ):
        folder = building.path
        _write_settings(publication, folder)
        tokenizer = publication.tokenizer_class
        write_code(folder, [*publication.classes.values(), *([] if tokenizer is None else [tokenizer])])
        _place_weights(publication, folder, show_progress)
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
        checks = publish_comparing.checked(
            source, bool(publication.classes), publication.mode, folder, building.scratch, show_progress
        )
        sha256 = _checksums(source, [folder / name for name in names], show_progress)
        model_card(
            publication.repo,
            source.row,
            source.config,
            source.record,
            publication.texts,
            bool(publication.classes),
            source.has_tokenizer,
            [*_recorded(source), *checks],
            sha256,
        ).save(folder / CARD)
        sha256[CARD] = hashlib.sha256((folder / CARD).read_bytes()).hexdigest()
        building.publish(sha256)
    return sha256


@contextmanager
def explained(output: Path) -> Iterator[None]:
    """What the system refuses, as an error that says what is left."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else (error.strerror or str(error))
        where = f" ({error.filename})" if error.filename else ""
        raise PublishError(
            f"{output}: {what}{where}. Nothing was published or left behind; run the same command again once "
            f"{'some space is free' if full else 'the cause is gone'}."
        ) from error


# Building.


def _write_settings(publication: Publication, folder: Path) -> None:
    """Writes the small files, with the classes they name."""
    source = publication.source
    auto_map: dict[str, Any] = dict(publication.classes)
    for name, content in source.small.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            write_json(folder / name, content)
    tokenizer = folder / "tokenizer_config.json"
    if publication.tokenizer_class is not None and tokenizer.is_file():
        auto_map["AutoTokenizer"] = [publication.tokenizer_class, None]
        write_json(tokenizer, read_json(tokenizer) | {"auto_map": {"AutoTokenizer": auto_map["AutoTokenizer"]}})
    write_json(folder / "config.json", {**source.config, **({"auto_map": auto_map} if auto_map else {})})
    _write_generation_config(source, folder)
    large = [path.name for path in folder.glob("*.json") if path.stat().st_size > LARGE_TEXT_BYTES]
    lines = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in sorted(large))
    (folder / ".gitattributes").write_text(GITATTRIBUTES + lines, encoding="utf-8")


def _write_generation_config(source: Source, folder: Path) -> None:
    """Makes sure that a model that generates has its defaults in a file."""
    path = folder / "generation_config.json"
    if not path.is_file() and source.row.auto_classes[source.architecture] == "AutoModelForCausalLM":
        ids = {name: source.config.get(name) for name in ("eos_token_id", "pad_token_id")}
        write_json(path, {"do_sample": False} | {name: value for name, value in ids.items() if value is not None})


def _place_weights(publication: Publication, folder: Path, show_progress: bool) -> None:
    """Links or copies the weight files, the very ones that were looked at."""
    source = publication.source
    what = "linking" if publication.links else "copying"
    with progress_bar(what, source.nbytes, 0, show_progress) as progress:
        for name, identity in source.weights.items():
            with open_regular(source.folder / name) as file:
                _check_same(source.folder / name, FileState.of(file.fileno()), identity)
                if not (publication.links and _link(real_place(source.folder / name), folder / name, identity)):
                    _check_disk(source, publication.output)
                    _copy(file, folder / name, progress)
                    _check_same(source.folder / name, FileState.of(file.fileno()), identity)
                else:
                    progress(identity.size)


def _link(source: Path, target: Path, identity: FileState) -> bool:
    """Gives a file a second name; False where the file system does not do that."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOENT):
            raise
        return False
    with open_regular(target) as file:
        _check_same(source, FileState.of(file.fileno()), identity)
    return True


def _copy(file: BinaryIO, target: Path, progress: Progress) -> None:
    with target.open("xb") as copy:
        while block := file.read(BLOCK_BYTES):
            copy.write(block)
            progress(len(block))
        copy.flush()
        os.fsync(copy.fileno())


def _check_same(path: Path, now: FileState, planned: FileState) -> None:
    if what := planned.difference(now) or ("" if now.device == planned.device else "it lies on another disk"):
        raise PublishError(
            f"{path}: changed while it was published: {what}. Run again once nothing writes there any more."
        )


def _checksums(source: Source, files: Sequence[Path], show_progress: bool) -> dict[str, str]:
    """SHA-256 of files; those of the conversion's record must be the same.

    Raises:
        PublishError: a weight file is not what the converter wrote.
    """
    sha256 = {}
    with progress_bar("hashing", sum(path.stat().st_size for path in files), 0, show_progress) as progress:
        for path in files:
            digest = hashlib.sha256()
            with open_regular(path) as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    progress(len(block))
            sha256[path.name] = digest.hexdigest()
    recorded = source.record.get("sha256") or {}
    changed = sorted(name for name, value in recorded.items() if sha256.get(name) != value)
    if changed:
        raise PublishError(
            f"{source.folder}: {changed[0]} is not the file the converter wrote ({RECORD} has another "
            "SHA-256). Convert again; or, if it was changed on purpose, save the model with save_pretrained into a "
            "new folder and publish that."
        )
    return sha256


def _recorded(source: Source) -> list[CheckRow]:
    recorded = source.record.get("sha256") or {}
    if not recorded:
        return []
    same = f"equal, {count(len(recorded), 'file')}"
    return [("bytes of the weights", "what the converter wrote and read back", same)]


def read_parity(path: Path) -> tuple[CheckRow, ...]:
    """Rows for the card from a JSON file: a list of objects with `what`, `with` and `result`.

    Raises:
        PublishError: it is something else.
    """
    try:
        content: Sequence[Mapping[str, Any]] = read_json(path)
        return tuple((str(row["what"]), str(row["with"]), str(row["result"])) for row in content)
    except (ValueError, KeyError, TypeError) as error:
        raise PublishError(
            f'{path}: should be a JSON list of {{"what": ..., "with": ..., "result": ...}} ({error!r}).'
        ) from error


__all__ = ["CHECKS", "Publication", "default_output", "explained", "plan_publication", "publish", "read_parity"]
