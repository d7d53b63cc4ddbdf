"""From a UIE teacher, texts and a schema to a student's folder and a table of both.

OUTPUT/data/           rows and label_maps.json, see `data.py`; synthetic.jsonl is the teacher's part
OUTPUT/training/       checkpoints, gone when the student is there
OUTPUT/                the student, its tokenizer, comparison.json
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_glm_ernie.ernie_tasks.gplinker import extract
from hf_glm_ernie.ernie_tasks.gplinker_schema import LabelMaps, label_maps_of
from hf_glm_ernie.ernie_tasks.uie import uie
from hf_glm_ernie.ernie_training.gplinker_task import LABEL_MAPS
from hf_glm_ernie.host_arguments import flags, probability_threshold, whole_number

from .comparing import Measured, as_json, compare, read_rows
from .data import ROW_FILES, labelled_splits, write_rows
from .labelling import drawn_texts, label_texts
from .student import train_student

SYNTHETIC, SETTINGS, COMPARISON = "synthetic.jsonl", "settings.json", "comparison.json"
OF_THE_ROWS = ("texts", "labelled", "sample_index", "schema", "synthetic_ratio", "threshold", "language", "seed")
"""Settings that the teacher's rows depend on."""


@dataclass(frozen=True)
class DistilArguments:
    """How a student is made. Defaults are PaddleNLP's, where it has them.

    Attributes:
        texts: File of texts without labels, one a line.
        schema: What is extracted, as [`uie`] takes it; see [`label_maps_of`].
        encoder: Folder of the encoder that becomes the student: an ERNIE encoder, or a UIE model, whose encoder is
            taken.
        labelled: Export of doccano (JSONL) or Label Studio (JSON); `None`: the student learns from the teacher alone,
            and is measured by how far it agrees with it.
        sample_index: Which of its documents are for train, dev and test; `None`: the `sample_index.json` beside it,
            else 8:1:1.
        synthetic_ratio: Texts that the teacher labels for each labelled one to train on; -1: all.
        layers: Layers of the encoder that stay, spread evenly; `None`: all.
        threshold: Of the teacher's answers.
        language: Of the teacher's prompts.
        max_length: Tokens of a text in training.
        epochs: Times over the rows.
        learning_rate: At the beginning; it falls to 0.
        batch_size: Rows of a step, and of a forward.
        seed: Of everything random.
        overwrite: An earlier run in the folder is replaced.
        resume: An earlier run in the folder goes on.
        progress: Bars.

    Raises:
        TypeError: an argument of another kind.
        ValueError: one out of range.
    """

    texts: Path
    schema: Any
    encoder: str
    labelled: Path | None = None
    sample_index: Path | None = None
    synthetic_ratio: int = 10
    layers: int | None = None
    threshold: float = 0.5
    language: str = "zh"
    max_length: int = 256
    epochs: int = 50
    learning_rate: float = 3e-5
    batch_size: int = 16
    seed: int = 1000
    overwrite: bool = False
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        label_maps_of(self.schema)
        whole_number("synthetic_ratio", self.synthetic_ratio, least=-1)
        for name in ("epochs", "batch_size", *(["layers"] if self.layers is not None else [])):
            whole_number(name, getattr(self, name))
        whole_number("max_length", self.max_length, least=8)
        whole_number("seed", self.seed, least=0, most=2**32 - 1)
        probability_threshold("threshold", self.threshold)
        flags(overwrite=self.overwrite, resume=self.resume, progress=self.progress)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0.")
        if self.overwrite and self.resume:
            raise ValueError("overwrite and resume say different things about the folder: give one of them.")
        if self.synthetic_ratio == 0 and self.labelled is None:
            raise ValueError("synthetic_ratio=0 and no labelled texts: there is nothing to learn from.")
        for file in (self.texts, self.labelled, self.sample_index):
            if file is not None and not Path(file).is_file():
                raise ValueError(f"There is no file {file}.")


def distil_uie(teacher: Any, tokenizer: Any, output: Path | str, arguments: DistilArguments) -> list[Measured]:
    """Makes a student for one schema.

    Args:
        teacher: Anything that [`uie`] takes for a model.
        tokenizer: Its tokenizer.
        output: The student's folder.
        arguments: How.

    Returns:
        Teacher and student, measured on test, or on dev where test is empty.

    Raises:
        ValueError: arguments or data that cannot be used; a folder that holds a run, and nothing was said about it.
        OSError: a file cannot be read or written.
    """
    output, maps = Path(output), label_maps_of(arguments.schema)
    data = output / "data"
    _prepare(output, arguments)
    teach = partial(_ask, teacher, tokenizer, arguments)
    try:
        _write_data(data, _splits(arguments, maps), teach, maps, arguments)
    except ValueError:
        if not (data / SYNTHETIC).is_file() or not (data / SYNTHETIC).stat().st_size:
            shutil.rmtree(output)  # no answer is lost
        raise
    encoder_tokenizer = AutoTokenizer.from_pretrained(arguments.encoder)
    training = output / "training"
    student = train_student(
        arguments.encoder, encoder_tokenizer, data, training, asdict(arguments), resume=arguments.resume
    )
    gold = read_rows(data / ROW_FILES["test"], maps) or read_rows(data / ROW_FILES["dev"], maps)
    answer = partial(
        extract, student, encoder_tokenizer, batch_size=arguments.batch_size, show_progress=arguments.progress
    )
    models = {"teacher": (teacher, teach), "student": (student, answer)}
    measured = compare(models, gold, maps, show_progress=arguments.progress) if gold else []
    encoder_tokenizer.save_pretrained(output)
    (output / COMPARISON).write_text(json.dumps(as_json(measured), indent=1) + "\n", encoding="utf-8")
    student.save_pretrained(output)
    shutil.rmtree(training, ignore_errors=True)
    return measured


def _splits(arguments: DistilArguments, maps: LabelMaps) -> Mapping[str, Any]:
    """The labelled rows, by split; none where no file of them is given."""
    if arguments.labelled is None:
        return {}
    index = arguments.sample_index
    return labelled_splits(Path(arguments.labelled), maps, arguments.seed, index, arguments.progress)


def _ask(teacher: Any, tokenizer: Any, arguments: DistilArguments, texts: Any) -> list[Any]:
    settings: dict[str, Any] = {"threshold": arguments.threshold, "language": arguments.language}
    settings |= {"batch_size": arguments.batch_size, "show_progress": False}
    return uie(teacher, tokenizer, arguments.schema, texts, **settings)


def _write_data(
    data: Path, splits: Mapping[str, Any], teach: Any, maps: LabelMaps, arguments: DistilArguments
) -> None:
    """The teacher's rows, and the files that the student is trained and measured on."""
    labelled = len(splits.get("train", ()))
    synthetic = data / SYNTHETIC
    synthetic.touch()
    if arguments.synthetic_ratio:
        ratio = arguments.synthetic_ratio
        number, texts = drawn_texts(Path(arguments.texts), labelled, ratio, arguments.seed)
        label_texts(teach, texts, number, maps, synthetic, arguments.progress)
    write_rows(data, dict(splits), synthetic, maps)
    (data / LABEL_MAPS).write_text(json.dumps(maps.as_dict(), ensure_ascii=False) + "\n", encoding="utf-8")


def _prepare(output: Path, arguments: DistilArguments) -> None:
    """Makes the folder, or looks at what an earlier run left there."""
    file = output / "data" / SETTINGS
    own = {name: getattr(arguments, name) for name in OF_THE_ROWS}
    written = json.loads(json.dumps(own, ensure_ascii=False, default=str))
    if output.exists() and any(output.iterdir()):
        if arguments.overwrite and file.is_file():
            shutil.rmtree(output)
        elif not arguments.resume or not file.is_file() or (output / "config.json").exists():
            raise ValueError(
                f"{output} is not empty. Name a new folder; --resume goes on with a run that was stopped there, "
                "--overwrite replaces one."
            )
        elif (before := json.loads(file.read_text(encoding="utf-8"))) != written:
            changed = sorted(name for name in written if before.get(name) != written[name])
            raise ValueError(
                f"{output} holds a run with other settings ({', '.join(changed)}): resume it with the same, or give "
                "--overwrite."
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


__all__ = ["DistilArguments", "distil_uie"]
