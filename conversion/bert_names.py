"""An ERNIE encoder with one task type is a BERT: the one table from transformers' ERNIE names to its BERT names.

ERNIE looks a word, its place, its token type and a task type up and adds the four rows; with the task type always the
same, its row can be added to every position's beforehand, and what is left is BERT. So one operation
(`operations.FoldedRow`) and otherwise new names. What was folded is kept beside the weights, in a folder that engines
do not look into, so that the way back loses nothing.

The table is derived from those of `ernie_names`: ERNIE's names stand there once.
"""

from dataclasses import dataclass

from transformers import BertConfig

from .ernie_names import PREFIX, TASK_EMBEDDINGS, TASKS, WORD_EMBEDDINGS, Task
from .operations import FoldedRow, Operation, Replicated, Tied
from .state_map import Row, StateMap

BERT_PREFIX = "bert."
POSITIONS = "embeddings.position_embeddings.weight"

KEPT_FILE = "ernie/before_folding.safetensors"
"""In a folder of its own: engines read every .safetensors file beside config.json as weights of the model."""
KEPT_POSITIONS = "before_folding.position_embeddings.weight"
KEPT_TASKS = "before_folding.task_type_embeddings.weight"
KEPT = (KEPT_POSITIONS, KEPT_TASKS)


@dataclass(frozen=True)
class BertTask:
    """A head that both families have.

    Attributes:
        ernie: On ERNIE's side.
        architecture: transformers' BERT class.
        prefix: Of the backbone's names in it.
    """

    ernie: Task
    architecture: str
    prefix: str

    def renamed(self, name: str) -> str:
        """The BERT name of an ERNIE name."""
        return self.prefix + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name

    @property
    def positions(self) -> str:
        """BERT's name of the position embeddings."""
        return self.prefix + POSITIONS

    @property
    def words(self) -> str:
        """BERT's name of the word embeddings."""
        return self.prefix + WORD_EMBEDDINGS

    @property
    def ernie_positions(self) -> str:
        """ERNIE's name of the position embeddings."""
        return self.ernie.prefix + POSITIONS

    @property
    def ernie_tasks(self) -> str:
        """ERNIE's name of the task embeddings."""
        return self.ernie.prefix + TASK_EMBEDDINGS

    def table(self, row: int | None) -> StateMap:
        """ERNIE's names in transformers <-> BERT's there, and what is kept of ERNIE's.

        Args:
            row: Of the task embeddings, to be folded; None for an encoder that has none.
        """
        rows = []
        for held in self.ernie.table().rows:
            for name in held.targets:
                targets: tuple[str, ...] = (self.renamed(name),)
                source: str | None = name
                operation: Operation = Replicated()
                if isinstance(held.operation, Tied):
                    source, operation = None, Tied(self.renamed(held.operation.of))
                elif name == self.ernie_tasks:
                    targets = (KEPT_TASKS,)
                elif name == self.ernie_positions and row is not None:
                    targets, operation = (*targets, KEPT_POSITIONS), FoldedRow(self.ernie_tasks, row)
                if name != self.ernie_tasks or row is not None:
                    rows.append(Row(source, targets, operation))
        return StateMap(f"transformers {self.ernie.architecture}", rows)


BERT_TASKS = tuple(
    BertTask(task, task.architecture.replace("Ernie", "Bert"), BERT_PREFIX if task.prefix else "")
    for task in TASKS
    if task.is_native
)


def bert_task(task: Task) -> BertTask | None:
    """The BERT class of an ERNIE head; None if it has none."""
    return next((one for one in BERT_TASKS if one.ernie == task), None)


def task_of_bert(architecture: str) -> BertTask | None:
    """The head of a BERT class; None if ERNIE has none."""
    return next((one for one in BERT_TASKS if one.architecture == architecture), None)


MODEL_TYPE = BertConfig.model_type

__all__ = [
    "BERT_PREFIX",
    "BERT_TASKS",
    "KEPT",
    "KEPT_FILE",
    "KEPT_POSITIONS",
    "KEPT_TASKS",
    "MODEL_TYPE",
    "BertTask",
    "bert_task",
    "task_of_bert",
]
