"""The data of a student: labelled documents dealt into splits, and the texts that the teacher labels, as rows.

    train_data.json   labelled documents, then the teacher's answers
    dev_data.json     labelled documents; without any, a tenth of the teacher's
    test_data.json    labelled documents
    label_maps.json   numbers of types and relations, and the schema

Source: PaddleNLP, `applications/information_extraction/text/data_distill/data_distill.py`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hf_glm_ernie.ernie_data.arguments import LabelDataArguments
from hf_glm_ernie.ernie_data.convert import INDEX
from hf_glm_ernie.ernie_data.documents import Document
from hf_glm_ernie.ernie_data.export_file import format_of
from hf_glm_ernie.ernie_data.reading import read_documents
from hf_glm_ernie.ernie_data.splits import SPLITS, deal
from hf_glm_ernie.ernie_data.spool import encode
from hf_glm_ernie.ernie_tasks.gplinker_schema import LabelMaps
from hf_glm_ernie.ernie_training.gplinker_rows import MarkedText, as_row

from .marked import marked_of_document

ROW_FILES = {split: f"{split}_data.json" for split in SPLITS}
DEV_OF_TEACHER = 10
"""Without labelled documents every so many-th text of the teacher's is for dev."""


def labelled_splits(
    export: Path, maps: LabelMaps, seed: int, index: Path | None = None, show_progress: bool = True
) -> dict[str, list[MarkedText]]:
    """The documents of an export, dealt into train, dev and test.

    Args:
        export: doccano's JSONL or Label Studio's JSON.
        maps: The schema's labels.
        seed: Of the split, where there is no index.
        index: `sample_index.json`; `None`: the one beside the export, where there is one, else 8:1:1.
        show_progress: Whether to show a bar.

    Raises:
        ValueError: annotations that cannot be used; an index of another export.
        OSError: a file cannot be read.
    """
    arguments = LabelDataArguments(progress=show_progress)
    marked: dict[int, MarkedText] = {}
    for number, document in read_documents(export, format_of(export), arguments, None, Counter()):
        assert isinstance(document, Document)
        marked[number] = marked_of_document(document, maps)
    index = export.with_name(INDEX) if index is None and export.with_name(INDEX).is_file() else index
    if index is None:
        numbers = list(marked)
        dealt = deal(len(numbers), arguments.splits, True, np.random.RandomState(seed))
        return {split: [marked[numbers[i]] for i in of_split] for split, of_split in dealt.items()}
    ids = json.loads(index.read_text(encoding="utf-8"))
    if not isinstance(ids, dict) or not all(isinstance(ids.get(f"{split}_ids"), list) for split in SPLITS):
        names = ", ".join(f"{split}_ids" for split in SPLITS)
        raise ValueError(f"{index} is no index of splits: it must hold lists of numbers, {names}.")
    if unknown := [one for split in SPLITS for one in ids[f"{split}_ids"] if one not in marked]:
        raise ValueError(
            f"{index} names document {unknown[0]!r}, and {export} has {len(marked)}: is it another export's index?"
        )
    return {split: [marked[one] for one in ids[f"{split}_ids"]] for split in SPLITS}


def write_rows(folder: Path, splits: dict[str, list[MarkedText]], synthetic: Path, maps: LabelMaps) -> None:
    """Writes the files of rows; each appears whole.

    Args:
        folder: Where to.
        splits: Labelled documents; without any, dev is taken from the teacher's.
        synthetic: The teacher's rows.
        maps: The schema's labels.
    """
    has_labels = any(splits.values())
    lines = {split: _lines(splits.get(split, ()), maps) for split in SPLITS}
    for split in SPLITS:
        part = folder / f".{ROW_FILES[split]}.part"
        with part.open("w", encoding="utf-8") as file, synthetic.open(encoding="utf-8") as teachers:
            file.writelines(lines[split])
            for number, line in enumerate(teachers):
                is_dev = not has_labels and number % DEV_OF_TEACHER == 0
                if split == ("dev" if is_dev else "train"):
                    file.write(line)
        part.replace(folder / ROW_FILES[split])


def _lines(marked: Sequence[MarkedText], maps: LabelMaps) -> Iterable[str]:
    return (f"{encode(as_row(one, maps.opinion is not None))}\n" for one in marked)


__all__ = ["ROW_FILES", "labelled_splits", "write_rows"]
