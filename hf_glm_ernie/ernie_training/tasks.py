"""The tasks of fine-tuning and evaluation, by the names that command lines give them."""

from .choice_task import MultipleChoice
from .gplinker_task import Linking
from .prompt_tasks import Choosing, Extraction
from .qa_task import Reading
from .task import ErnieTask
from .text_tasks import Classification, Tagging

TASKS: dict[str, type[ErnieTask]] = {
    "classification": Classification,
    "tokens": Tagging,
    "gplinker": Linking,
    "uie": Extraction,
    "utc": Choosing,
    "qa": Reading,
    "choice": MultipleChoice,
}

__all__ = ["TASKS"]
