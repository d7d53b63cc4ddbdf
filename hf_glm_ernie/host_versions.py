"""The versions of transformers this package was tested with, and one warning about any other.

A Hub repository carries its code, but no pin of the host; a host that moved on has given other numbers without an
error. So every file that a repository is opened through imports this one, which looks once.
"""

import transformers
from packaging.version import Version
from transformers.utils import logging

# The floor of pyproject.toml and the pin of constraints.txt.
OLDEST_TESTED, NEWEST_TESTED = "5.17.0", "5.24.0"


def warn_of_untested_host(version: str = transformers.__version__) -> None:
    """Says once in a process that this transformers is outside the versions tested.

    Args:
        version: The host's version. A later patch of the newest tested minor is inside.
    """
    minor = Version(version).release[:2]
    if Version(OLDEST_TESTED) <= Version(version) and minor <= Version(NEWEST_TESTED).release[:2]:
        return
    # one logger and one message for every copy of this file, so that they are one warning
    logging.get_logger("hf_glm_ernie").warning_once(
        f"hf_glm_ernie was tested with transformers {OLDEST_TESTED} to {NEWEST_TESTED}, and this is {version}. Hosts "
        "of other versions have computed other numbers without an error. Use a newer hf_glm_ernie, or pip install "
        f"'transformers>={OLDEST_TESTED},<={NEWEST_TESTED}'."
    )


warn_of_untested_host()

__all__ = ["NEWEST_TESTED", "OLDEST_TESTED", "warn_of_untested_host"]
