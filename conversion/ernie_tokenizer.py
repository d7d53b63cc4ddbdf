"""Which tokenizer the `vocab.txt` of an ERNIE checkpoint needs, told from its pieces, and what is made of it.

| pieces | tokenizer |
|---|---|
| with ##, or of whole words and characters | `ErnieTokenizer`, WordPiece: all released encoders but those below |
| with Ġ | byte-level byte pairs (`ernie_bpe`): maybe `ernie-3.0-tiny-mini-v2-en`, whose file was not seen |
| with ▁ | none: `ernie-tiny` cuts words by `dict.wordseg.pickle` and then by a sentencepiece model |

Special tokens are `[CLS]`, `[SEP]`, `[PAD]`, `[UNK]` and `[MASK]`, or `<s>`, `</s>`, `<pad>`, `<unk>` and `<mask>`,
whichever the file has, unless the settings beside it name others. A model of one token type gets 0 for every text.
"""

from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase

from transformers import PreTrainedTokenizerFast

from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from hf_glm_ernie.tokenization_ernie_vocabulary import read_vocabulary

from .ernie_bpe import byte_level_tokenizer
from .ernie_vocabulary import load_tokenizer
from .operations import SettingsError
from .settings_files import read_settings_object
from .tokenizer_files import SPECIAL_TOKENS, check_tokenizer_files

ROLES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SPECIAL_NAMES = (
    dict(zip(ROLES, ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True)),
    dict(zip(ROLES, ("<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True)),
)

MARKS = {"##": "WordPiece", "Ġ": "byte pairs", "▁": "sentencepiece"}
"""What pieces of a kind begin with."""
ENGLISH_CAPITALS = frozenset(ascii_uppercase)
"""Other letters of a byte-level piece are bytes."""
STRAY = 0.01
"""Pieces of a second kind, as a part of the first's, that a vocabulary may have: single ones are mere words."""

TINY_MODEL = "spm_cased_simp_sampled.model"
NO_TINY = (
    "no tokenizer: the vocabulary is of sentencepiece (▁), as ernie-tiny's, whose tokenizer cuts words by "
    "dict.wordseg.pickle first, which is never opened here. Give the model the ids of PaddleNLP's ErnieTinyTokenizer"
)


def read_tokenizer(
    folder: Path, given: Path | None, token_types: int
) -> tuple[ErnieTokenizer | PreTrainedTokenizerFast | None, list[str]]:
    """The tokenizer of a checkpoint of PaddleNLP's, of whatever kind its vocabulary is; notices.

    Args:
        folder: The checkpoint's.
        given: `--vocab`.
        token_types: Of the model.

    Raises:
        SettingsError: a file is missing or damaged, or its words cannot be cut as the model's were.
    """
    path = folder / "vocab.txt" if given is None else given
    try:
        vocabulary = read_vocabulary(path)[0] if path.is_file() else {}
    except ValueError:  # whoever reads it next says what is wrong with it
        vocabulary = {}
    kind = _kind_of(vocabulary, path)
    if kind == "sentencepiece" or (folder / TINY_MODEL).is_file():
        return None, [NO_TINY]
    named = _named_in(folder) if given is None else {}
    special = _special_names(vocabulary, named)
    if kind == "byte pairs":
        return _byte_pairs(vocabulary, special, named, path)
    options: dict[str, object] = {role: token for role, token in special.items() if named.get(role) != token}
    if special == SPECIAL_NAMES[0]:
        options = {}
    notices = []
    if token_types == 1 and vocabulary:
        options["second_type"] = 0
        notices.append("the model has one token type: the tokenizer gives 0 for every text, for second ones, too")
    return load_tokenizer(folder, given, options), notices


def _byte_pairs(
    vocabulary: Mapping[str, int], special: Mapping[str, str], named: Mapping[str, object], path: Path
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    missing = [token for token in special.values() if token not in vocabulary]
    if not special or missing:
        raise SettingsError(
            f"{path}: a byte-pair vocabulary without {', '.join(missing) or '[CLS] or <s> and the others'}. Name its "
            "special tokens in special_tokens_map.json beside it."
        )
    marked = set(special.values())
    is_cased = any(len(piece) > 1 and not ENGLISH_CAPITALS.isdisjoint(piece) for piece in vocabulary.keys() - marked)
    said = named.get("do_lower_case")
    lowercase = said if isinstance(said, bool) else not is_cased
    tokenizer, origin = byte_level_tokenizer(vocabulary, special, lowercase, path)
    return tokenizer, [
        f"{path.name} has byte pairs (Ġ), which PaddleNLP would read as WordPiece and not find; the tokenizer is a "
        f"byte-level one with {origin}, {'lowercases' if lowercase else 'keeps capital letters'}, and puts "
        f"{special['cls_token']} A {special['sep_token']} B {special['sep_token']} around texts, of token type 0. "
        "The released file was not seen: compare a few ids with those the model was trained on"
    ]


def _kind_of(vocabulary: Mapping[str, int], path: Path) -> str:
    counts = {
        kind: sum(piece.startswith(mark) and len(piece) > len(mark) for piece in vocabulary)
        for mark, kind in MARKS.items()
    }
    (kind, most), (other, next_most), *_ = sorted(counts.items(), key=lambda entry: -entry[1])
    if next_most > STRAY * most:
        raise SettingsError(
            f"{path}: {most} pieces of {kind} and {next_most} of {other} in one vocabulary; it is one or the other. "
            "Take the model's own file."
        )
    return kind if most else "WordPiece"


def _named_in(folder: Path) -> dict[str, object]:
    """What the settings beside a vocabulary say of it."""
    check_tokenizer_files(folder)
    named: dict[str, object] = {}
    for name in (SPECIAL_TOKENS, "tokenizer_config.json"):
        path = folder / name
        for key, value in read_settings_object(path, str(path)).items() if path.is_file() else ():
            if key in (*ROLES, "do_lower_case") and value is not None:
                named[key] = value["content"] if isinstance(value, dict) else value
    return named


def _special_names(vocabulary: Mapping[str, int], named: Mapping[str, object]) -> dict[str, str]:
    """Argument of the tokenizer -> token: what the settings name, else those that the vocabulary has; may be none."""
    found = next((names for names in SPECIAL_NAMES if names.items() and set(names.values()) <= vocabulary.keys()), {})
    return {**found, **{role: str(named[role]) for role in ROLES if role in named}}


__all__ = ["read_tokenizer"]
