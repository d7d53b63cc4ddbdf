"""The vocabulary and the positions that a corpus needs: embedding rows of other tokens are left out.

Tokens keep their order, and with it what ERNIE's ids mean: `[PAD]` first, `[UNK]` last in front of added tokens. Kept
are the tokens of the corpus, every special and added token, and the single characters that are asked for. On a text of
the corpus the smaller tokenizer gives the same tokens as the whole one:

- WordPiece takes the longest piece that the vocabulary has; among fewer pieces that is the same one, while it is kept;
- a word that is `[UNK]` must stay one, though fewer pieces may find another way through it. So the pieces up to where
  it failed are kept as well.

What the tokenizer's files say is rewritten in `tokenizer.json` and read again by the tokenizer's own class, so any
WordPiece tokenizer can be reduced.
"""

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from hf_glm_ernie.compact_ernie import Int8Embedding

NONE, ASCII, ALL = "none", "ascii", "all"
CHARACTERS = (NONE, ASCII, ALL)
"""Which single characters are kept beside the corpus's: none, those of a keyboard, every one of the vocabulary."""
AT_ONCE = 1000  # texts


def texts_in(value: Any) -> Iterator[str]:
    """Every string in rows of data, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts_in(one)
    elif isinstance(value, Iterable):
        for one in value:
            yield from texts_in(one)


def needed_tokens(tokenizer: Any, texts: Iterable[str], ids: Iterable[int] = (), characters: str = ASCII) -> set[str]:
    """The tokens that stay.

    Args:
        tokenizer: A WordPiece tokenizer.
        texts: The corpus; none may be longer than memory has room for its tokens.
        ids: Of tokens that stay as well, such as those of rows that a task cut at other places than words' ends.
        characters: One of `CHARACTERS`, or the characters themselves, in one string.

    Returns:
        Tokens as the vocabulary has them.
    """
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    vocabulary, prefix = model["vocab"], model["continuing_subword_prefix"]
    used = set(ids)
    words: set[str] = set()
    for batch in _batches(dict.fromkeys(texts)):
        for row in tokenizer(batch, add_special_tokens=False, truncation=False)["input_ids"]:
            used.update(row)
        words.update(word for text in batch for word in _words(backend, text))
    tokens = {token for token in map(backend.id_to_token, used) if token in vocabulary}
    for word in words:
        tokens.update(_pieces(word, vocabulary, prefix))
    tokens |= {token for token in vocabulary if _is_wanted(token.removeprefix(prefix), characters)}
    return tokens | ({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()} & set(vocabulary))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _words(backend: Any, text: str) -> list[str]:
    clean = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(clean)]


def _pieces(word: str, vocabulary: Mapping[str, int], prefix: str) -> list[str]:
    """The pieces that WordPiece finds, up to the end of the word or to where it finds none."""
    found, start = [], 0
    while start < len(word):
        ends = (end for end in range(len(word), start, -1) if (prefix * (start > 0)) + word[start:end] in vocabulary)
        end = next(ends, None)
        if end is None:
            break
        found.append((prefix * (start > 0)) + word[start:end])
        start = end
    return found


def _is_wanted(text: str, characters: str) -> bool:
    if len(text) != 1 or characters == NONE:
        return False
    if characters == ASCII:
        return text.isascii()
    return characters == ALL or text in characters


def reduce_tokenizer(tokenizer: Any, tokens: Collection[str]) -> tuple[Any, list[int]]:
    """The tokenizer with these tokens of its vocabulary, and all of its added ones.

    Args:
        tokenizer: A WordPiece tokenizer; it is not changed.
        tokens: From [`needed_tokens`].

    Returns:
        The smaller tokenizer, and for each of its ids the id that its token had.

    Raises:
        ValueError: another kind of tokenizer; tokens without a special one.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"]["type"] != "WordPiece":
        raise ValueError(
            f"A {content['model']['type']} vocabulary cannot be cut to a corpus's tokens: its pieces are made of one "
            "another. WordPiece vocabularies can, as ERNIE's Chinese models have."
        )
    old = content["model"]["vocab"]
    missing = sorted(set(tokenizer.all_special_tokens) & set(old) - set(tokens))
    if missing:
        raise ValueError(f"The tokens that stay lack {', '.join(missing)}: special tokens cannot be left out.")
    names = sorted((token for token in old if token in tokens), key=old.__getitem__)
    new = {token: index for index, token in enumerate(names)}
    added = sorted(content["added_tokens"], key=lambda token: token["id"])
    ids = {index: old[token] for token, index in new.items()}
    for token in added:
        index = new.get(token["content"], len(ids))
        ids.setdefault(index, token["id"])
        token["id"] = index
    content["model"]["vocab"], content["added_tokens"] = new, added
    _rename_ids(content["post_processor"], {token["content"]: token["id"] for token in added} | new)
    return _reopened(tokenizer, content, names), [ids[index] for index in range(len(ids))]


def _rename_ids(post_processor: Any, ids: Mapping[str, int]) -> None:
    """Gives the tokens around a text their new ids, in place; both forms that the library has."""
    for one in ((post_processor or {}).get("special_tokens") or {}).values():
        one["ids"] = [ids[token] for token in one["tokens"]]
    for name in ("cls", "sep"):
        if name in (post_processor or {}):
            post_processor[name][1] = ids[post_processor[name][0]]


def _reopened(tokenizer: Any, content: dict[str, Any], names: list[str]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder)
        (path / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        (path / "vocab.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        (path / "added_tokens.json").unlink(missing_ok=True)
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # has the old ids; tokenizer.json has the new ones
        (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def keep_rows(model: Any, ids: list[int], pad_token_id: int | None) -> None:
    """Leaves these rows of the word embedding, in this order, in place.

    Args:
        model: An ERNIE encoder with its head; no output may be tied to the embedding.
        ids: From [`reduce_tokenizer`].
        pad_token_id: Of the smaller tokenizer.

    Raises:
        ValueError: ids beyond the embedding.
    """
    embeddings = model.base_model.embeddings
    rows = model.config.vocab_size
    if max(ids) >= rows:
        raise ValueError(
            f"The tokenizer has the id {max(ids)}, and the model {rows} rows: they do not belong together."
        )
    embeddings.word_embeddings = rows_of(embeddings.word_embeddings, torch.tensor(ids), pad_token_id)
    model.config.vocab_size, model.config.pad_token_id = len(ids), pad_token_id


@torch.no_grad()
def keep_positions(model: Any, positions: int) -> None:
    """Leaves the first rows of the position embedding, in place; a model with no more than these stays as it is."""
    embeddings = model.base_model.embeddings
    if positions >= model.config.max_position_embeddings:
        return
    embeddings.position_embeddings = rows_of(embeddings.position_embeddings, torch.arange(positions))
    for name in ("position_ids", "token_type_ids"):  # the host's tables of the same length
        setattr(embeddings, name, getattr(embeddings, name)[:, :positions].clone())
    model.config.max_position_embeddings = positions


def rows_of(embedding: Any, ids: torch.Tensor, pad_token_id: int | None = None) -> nn.Module:
    """An embedding of some rows of another; of integers where that one has them."""
    ids = ids.to(embedding.weight.device)
    if isinstance(embedding, Int8Embedding):
        new = Int8Embedding(len(ids), embedding.embedding_dim, device=ids.device)
        new.weight.data, new.weight_scale.data = embedding.weight.data[:, ids], embedding.weight_scale.data[ids]
        return new
    return nn.Embedding(len(ids), embedding.embedding_dim, padding_idx=pad_token_id, _weight=embedding.weight[ids])


__all__ = [
    "ASCII",
    "CHARACTERS",
    "keep_positions",
    "keep_rows",
    "needed_tokens",
    "reduce_tokenizer",
    "rows_of",
    "texts_in",
]
