"""The tasks of fine-tuning and evaluation, by the names that command lines give them."""

from .gplinker_task import Linking
from .prompt_tasks import Choosing, Extraction
from .task import ErnieTask
from .text_tasks import Classification, Tagging

TASKS: dict[str, type[ErnieTask]] = {
    "classification": Classification,
    "tokens": Tagging,
    "gplinker": Linking,
    "uie": Extraction,
    "utc": Choosing,
}

__all__ = ["TASKS"]
