"""Files of training data: one by its name, or a folder as PaddleNLP's converters write them.

A folder holds `train.txt` and `dev.txt` (one JSON row a line), or the same names with another ending; `train_data` and
`dev_data` in those of closed-domain training; or it is one of CLUE's as it was downloaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMATS = {".jsonl": "json", ".json": "json", ".txt": "json", ".csv": "csv", ".parquet": "parquet", ".tsv": "csv"}
RELEASED = {"train": ("train.50k.json", "[dm]-train.json"), "dev": ("[dm]-dev.json", "test.tsv")}
"""Names in the folders of OCNLI and C3 (two files each), and of MSRA, which is evaluated on its test set."""


def find_files(data: str, eval_data: str | None) -> tuple[Path, Path | None]:
    """Which files are meant.

    Args:
        data: The training file, or a folder with one named `train`, and `dev` to evaluate on.
        eval_data: A file to evaluate on, in place of the folder's.

    Raises:
        ValueError: a folder without a training file, or with several.
    """
    folder = Path(data)
    evaluation = None if eval_data is None else Path(eval_data)
    if not folder.is_dir():
        return folder, evaluation
    train, dev = (find_split(folder, name) for name in ("train", "dev"))
    if train is None:
        raise ValueError(f"The folder {data} has no train file: train{', train'.join(FORMATS)}.")
    return train, evaluation or dev


def find_split(folder: Path, name: str) -> Path | None:
    """The file of a folder that is named `train` or `dev`, in any of the forms; `None`: there is none.

    Raises:
        ValueError: there are several.
    """
    return _named(folder, name) or _named(folder, f"{name}_data")


def _named(folder: Path, name: str) -> Path | None:
    found = [path for ending in FORMATS if (path := folder / f"{name}{ending}").is_file()]
    if len(found) > 1:
        raise ValueError(f"The folder {folder} has {' and '.join(path.name for path in found)}: name the file itself.")
    released = [folder / name for name in RELEASED.get(name, ()) if any(folder.glob(name))]
    return next(iter([*found, *released]), None)


def read_data(file: Path, columns: Sequence[str]) -> Any:
    """Reads a file: a `datasets.Dataset` with at least these columns.

    Raises:
        ValueError: a file of an unknown kind, or without a column.
        FileNotFoundError: no such file.
        ImportError: no `datasets`.
    """
    load_dataset = _datasets().load_dataset
    if file.suffix not in FORMATS:
        raise ValueError(f"{file} is none of {', '.join(FORMATS)}.")
    check_file(file)
    more = {"sep": "\t"} if file.suffix == ".tsv" else {}
    dataset = load_dataset(FORMATS[file.suffix], data_files=str(file), split="train", **more)
    if missing := [name for name in columns if name not in dataset.column_names]:
        raise ValueError(f"{file} has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}.")
    return dataset


def rows_dataset(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a `datasets.Dataset`.

    Raises:
        ImportError: no `datasets`.
    """
    return _datasets().Dataset.from_list(list(rows))


def check_file(file: Path) -> None:
    """Raises FileNotFoundError where a file is not there."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Reading data needs the package datasets: pip install datasets") from error
    return datasets


__all__ = ["FORMATS", "check_file", "find_files", "find_split", "read_data", "rows_dataset"]
