"""What is asked of a conversion, checked before a file is opened."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .export_file import DOCCANO, FORMATS, LABEL_STUDIO
from .options import check_options
from .splits import check_splits
from .uie_rows import LABEL_STUDIO_RULES, Rules
from .utc_rows import check_choices

EXTRACTION, CLASSIFICATION, UTC = "ext", "cls", "utc"
TASKS = (EXTRACTION, CLASSIFICATION, UTC)
ROWS, DOCCANO_LINES = "rows", "doccano"
SENTIMENTS = ("正向", "负向")


@dataclass(frozen=True)
class LabelDataArguments:
    """How an export becomes rows. The defaults are those of PaddleNLP's scripts.

    Attributes:
        task: "ext": UIE rows of entities, relations, events and classes of entities. "cls": UIE rows of whole texts
            with classes. "utc": UTC rows of whole texts.
        export_format: "doccano" (JSONL) or "label-studio" (JSON); "auto": by the first character.
        options: Classes, or one file that has one a line. Default: 正向 and 负向; UTC has no default.
        prompt_prefix: Of UIE's class prompts.
        separator: Between an entity's label and its classes.
        schema_lang: "ch": `subject的predicate`; "en": `predicate of subject`.
        negative_ratio: Negative rows a positive one; -1: all there are.
        eval_negative_ratio: The same for entities of dev and test. Default: as the original, which takes all of a
            doccano export and `negative_ratio` of one of Label Studio. Relations of dev and test have all there are.
        splits: Parts of the documents for train, dev and test; empty: everything for training.
        shuffle: Documents are permuted before they are dealt out, and so are training rows of doccano's extraction.
        seed: Of everything random.
        text_separator: UTC: between the two texts of a pair.
        unknown_options: Classes that are no option: "error", or "drop".
        skip_unlabelled: Tasks of Label Studio that nobody labelled, or that were cancelled, are left out.
        default_relation: Label Studio: the type of relations that have no label. Default: an error.
        write: "rows", or "doccano": Label Studio's tasks become lines in doccano's form, and nothing else is done.
        overwrite: Files of an earlier run are replaced.
        progress: Bars on what takes longer than a second.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a value that is not one of the above; UTC without options.
    """

    task: str = EXTRACTION
    export_format: str = "auto"
    options: Sequence[str] | None = None
    prompt_prefix: str = "情感倾向"
    separator: str = "##"
    schema_lang: str = "ch"
    negative_ratio: int = 5
    eval_negative_ratio: int | None = None
    splits: Sequence[float] = (0.8, 0.1, 0.1)
    shuffle: bool = True
    seed: int = 1000
    text_separator: str = "\t"
    unknown_options: str = "error"
    skip_unlabelled: bool = False
    default_relation: str | None = None
    write: str = ROWS
    overwrite: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (
            ("task", TASKS),
            ("export_format", ("auto", *FORMATS)),
            ("write", (ROWS, DOCCANO_LINES)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: one of {list(allowed)} is needed")
        for name in ("shuffle", "skip_unlabelled", "overwrite", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}: True or False is needed")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed is {self.seed!r}: an integer is needed")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}: 0 to {2**32 - 1} is needed")
        if self.default_relation == "":
            raise ValueError("default_relation is empty: it is part of a prompt")
        if not self.text_separator:
            raise ValueError("text_separator is empty: at least one character is needed")
        if self.task == UTC and self.write == DOCCANO_LINES:
            raise ValueError("write is 'doccano' and task 'utc': doccano's lines are made by task 'ext' or 'cls'")
        check_splits(self.splits)
        self.rules(DOCCANO)
        self.classes()
        if self.eval_negative_ratio is not None:
            Rules(negative_ratio=self.eval_negative_ratio)

    def classes(self) -> list[str]:
        """The options, from their file if they are one.

        Raises:
            OSError: the file cannot be read.
            ValueError: as for the class.
        """
        options = self.options
        if options is None:
            if self.task == UTC and self.write == ROWS:
                raise ValueError("UTC needs its options: the classes, or a file that has one a line")
            options = SENTIMENTS
        elif not isinstance(options, str) and len(options) == 1 and _is_file(options[0]):
            options = [line.strip() for line in Path(options[0]).read_text(encoding="utf-8-sig").splitlines()]
        return check_choices(options) if self.task == UTC else check_options(options)

    def rules(self, form: str, is_train: bool = True) -> Rules:
        """The rules for one kind of export and of split; the options are those of [`classes`]."""
        ratio = self.negative_ratio
        if not is_train:
            original = -1 if form == DOCCANO else ratio
            ratio = original if self.eval_negative_ratio is None else self.eval_negative_ratio
        return Rules(
            negative_ratio=ratio,
            prompt_prefix=self.prompt_prefix,
            options=self.classes(),
            separator=self.separator,
            schema_lang=self.schema_lang,
            unknown_options=self.unknown_options,
            **(LABEL_STUDIO_RULES if form == LABEL_STUDIO else {}),
        )


def _is_file(name: str) -> bool:
    """Whether the only option is a file.

    Raises:
        ValueError: it looks like one and is not there.
    """
    if not isinstance(name, str):
        return False
    if not Path(name).is_file() and (name.endswith(".txt") or "/" in name):
        raise ValueError(f"options are the file {name!r}, which is not there: give it, or the classes themselves")
    return Path(name).is_file()
