"""A corpus for pre-training, prepared as ERNIE 3.0's was: `python -m hf_glm_ernie prepare-corpus`.

`text_rules.py` and `words.py` are the rules for one text, `signatures.py` and `near_duplicates.py` make of a text the
keys that its duplicates share, `occurrences.py` finds which of many keys came before. `mapping.py` is all of it as
functions for `datasets`. `reading.py`, `units.py`, `prepare.py` and `command.py` do it for files that no memory
holds, in several processes, and go on where they were stopped. `report.py` counts.
"""

from .mapping import CleanDocuments, FirstOccurrences, NearDuplicateKeys, WordSpans
from .prepare import CorpusArguments, prepare_corpus
from .reading import read_corpus
from .report import CorpusReport, Tally

__all__ = [
    "CleanDocuments",
    "CorpusArguments",
    "CorpusReport",
    "FirstOccurrences",
    "NearDuplicateKeys",
    "Tally",
    "WordSpans",
    "prepare_corpus",
    "read_corpus",
]
