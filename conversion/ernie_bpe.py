"""A byte-level byte-pair vocabulary in an ERNIE `vocab.txt`: pieces with Ġ, as `ernie-3.0-tiny-mini-v2-en` may have.

PaddleNLP reads every `vocab.txt` of ERNIE's as WordPiece, whose pieces inside words begin with ##; on pieces with Ġ
that finds almost none of them, and the model would get ids it was not trained on. What such a file needs is the order
in which pairs are merged, and a `vocab.txt` does not hold it, but for two cases:

- `merges.txt` lies beside it: then that is the order;
- the ids are in the order of the merges, as GPT-2's are: then the merge that makes a piece is what byte-pair encoding
  with the pieces before it leaves of its letters, two pieces. Every piece must come out so.

Otherwise (RoBERTa's ids, for one, are in the order of frequency) several orders fit and cut words in different ways:
it is refused.

Sources: Sennrich et al. 2016 (arXiv 1508.07909); Radford et al. 2019 (GPT-2, byte-level).
"""

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_glm_ernie.tokenization_ernie_vocabulary import write_vocabulary

from .operations import SettingsError

MERGES_FILE = "merges.txt"
MAX_MERGES_BYTES = 10_000_000
MAX_STEPS = 50_000_000
"""Of looking for the order of the merges, which takes the square of a piece's length: 50,000 pieces of up to 30
letters stay below it.
"""
SHOWN = 4

Merge = tuple[str, str]


def byte_level_tokenizer(
    vocabulary: Mapping[str, int], special: Mapping[str, str], lowercase: bool, where: Path
) -> tuple[PreTrainedTokenizerFast, str]:
    """The tokenizer of a byte-level vocabulary, with token types of 0 for every text.

    Args:
        vocabulary: The id of each piece.
        special: `cls_token` and the other arguments -> the token.
        lowercase: Whether text loses its capital letters.
        where: The `vocab.txt`; `merges.txt` is looked for beside it.

    Returns:
        The tokenizer, and where its merges come from, in words.

    Raises:
        SettingsError: the vocabulary has no piece for some byte, or its merges cannot be told.
    """
    if missing := sorted(set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()):
        raise SettingsError(
            f"{where}: pieces with Ġ, but none for {len(missing)} of the 256 bytes (e.g. "
            f"{', '.join(missing[:SHOWN])}), so it is no byte-level vocabulary. Take the complete file."
        )
    beside = where.with_name(MERGES_FILE)
    if beside.is_file():
        merges, origin = read_merges(beside, vocabulary), f"the merges of {MERGES_FILE}"
    else:
        merges, origin = (
            merges_from_order(vocabulary, set(special.values()), where),
            "merges in the order of its ids",
        )
    backend = Tokenizer(models.BPE(dict(vocabulary), merges))
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    first, last = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:0 {last}:0",
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=names, do_lower_case=lowercase, **special
    )
    return tokenizer, origin


def write_byte_pairs(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes `vocab.txt` and `merges.txt` of a byte-level tokenizer, from which it is made again."""
    write_vocabulary(folder, None, tokenizer.get_vocab(), {})
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    lines = (" ".join(merge) if isinstance(merge, list) else merge for merge in merges)
    (folder / MERGES_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[Merge]:
    """The merges of a file, one a line in their order, as two pieces with a blank between.

    Raises:
        SettingsError: the file is no text, too large, or holds a line that is no merge of this vocabulary.
    """
    if path.stat().st_size > MAX_MERGES_BYTES:
        raise SettingsError(f"{path}: {path.stat().st_size:,} bytes; the limit is {MAX_MERGES_BYTES:,}.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text (byte {error.start}). Copy it again.") from error
    merges: list[Merge] = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pieces = line.split(" ")
        if len(pieces) != 2 or not {*pieces, "".join(pieces)} <= vocabulary.keys():
            raise SettingsError(
                f"{path}, line {number}: {line[:60]!r} is no merge of two pieces of the vocabulary into a third. Take "
                "the file that belongs to vocab.txt."
            )
        merges.append((pieces[0], pieces[1]))
    return merges


def merges_from_order(vocabulary: Mapping[str, int], special: set[str], where: Path) -> list[Merge]:
    """The merges of a vocabulary whose ids are in their order.

    Args:
        vocabulary: The id of each piece.
        special: Tokens that no merge makes.
        where: The `vocab.txt`, for messages.

    Raises:
        SettingsError: the ids are in another order.
    """
    steps = sum(len(piece) ** 2 for piece in vocabulary)
    if steps > MAX_STEPS:
        raise SettingsError(
            f"{where}: pieces so long that their merges would take {steps:,} steps to find; at most {MAX_STEPS:,}. "
            f"Put {MERGES_FILE} beside it."
        )
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    merges, wrong = [], []
    for piece, rank in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        if len(piece) < 2 or piece in special or not set(piece) <= letters or piece.startswith(("<", "[")):
            continue
        parts = _merged_before(piece, rank, vocabulary)
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
        else:
            wrong.append(piece)
    if wrong:
        raise SettingsError(
            f"{where}: a byte-pair vocabulary (pieces with Ġ) without {MERGES_FILE}, and its ids are not in the "
            f"order of the merges: {len(wrong)} pieces ({', '.join(wrong[:SHOWN])}) are not made of two that come "
            "before. Into which pieces a word is cut is then not known, and PaddleNLP's reading as WordPiece finds "
            f"none. Put the {MERGES_FILE} of the training (RoBERTa's, if the vocabulary is RoBERTa's) beside "
            "vocab.txt; or move vocab.txt away: the folder then gets no tokenizer."
        )
    return merges


def _merged_before(piece: str, rank: int, vocabulary: Mapping[str, int]) -> list[str]:
    """What byte-pair encoding with the pieces before one leaves of its letters."""
    parts = list(piece)
    while len(parts) > 2:
        ranks = [vocabulary.get(parts[at] + parts[at + 1], rank) for at in range(len(parts) - 1)]
        lowest = min(ranks)
        if lowest >= rank:
            break
        at = ranks.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


__all__ = ["MERGES_FILE", "byte_level_tokenizer", "merges_from_order", "read_merges", "write_byte_pairs"]
