"""What users pass wrongly, ids that no token has, one tokenizer for several threads: right, or a clear error."""

import copy
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hf_glm_ernie import (
    Ernie3ForCausalLM,
    Ernie3ForPreTraining,
    Ernie3Model,
    ErnieForUTC,
    ErnieTokenizer,
    ErnieUTCConfig,
    Glm130bTokenizer,
    cond_log_probs,
    fill_blanks,
    generate_answers,
    lm_loss,
    pair_scores,
    rerank,
    sentence_embeddings,
    uie,
    utc,
    zero_shot,
)
from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.host_interface import CACHE_NAME
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from tests.faults import runtime_fuzz
from tests.support import tiny_ernie3, tiny_models
from tests.support.ernie3_rows import small_tokenizer
from tests.support.ernie_vocabulary import SMALL, write_vocabulary
from tests.support.ice_text import train

ENCODER: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "glm": Glm130bTokenizer.from_ice_text_model(train(folder / "ice_text.model"), num_image_tokens=10),
        "ernie": ErnieTokenizer(write_vocabulary(folder, SMALL["vocabulary"])),
        "ernie3": small_tokenizer(tmp_path_factory.mktemp("ernie3")),
    }


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {
        "glm": tiny_models.tiny_model(),
        "nlu": tiny_ernie3.tiny_model(Ernie3Model),
        "nlg": tiny_ernie3.tiny_model(Ernie3ForCausalLM),
        "pretraining": tiny_ernie3.tiny_model(Ernie3ForPreTraining),
        "uie": ErnieForUIE(ErnieUIEConfig(**ENCODER)).eval(),
        "utc": ErnieForUTC(ErnieUTCConfig(**ENCODER)).eval(),
    }


Entry = Callable[..., Any]
ENTRIES: dict[str, tuple[str, str, Entry]] = {
    "fill_blanks": ("glm", "glm", fill_blanks),
    "uie": ("uie", "ernie", lambda m, t, x, **k: uie(m, t, "时间", x, **k)),
    "utc": ("utc", "ernie", lambda m, t, x, **k: utc(m, t, ["好", "坏"], x, **k)),
    "sentence_embeddings": ("nlu", "ernie3", sentence_embeddings),
    "zero_shot": ("pretraining", "ernie3", lambda m, t, x, **k: zero_shot(m, t, x, ["好", "坏"], **k)),
    "pair_scores": ("pretraining", "ernie3", pair_scores),
    "rerank": ("pretraining", "ernie3", rerank),
    "cond_log_probs": ("glm", "glm", lambda m, t, x, **k: cond_log_probs(m, t, x, [["a", "b"]], **k)),
    "lm_loss": ("glm", "glm", lm_loss),
    "generate_answers": ("glm", "glm", generate_answers),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_says_which_argument_is_wrong(
    name: str, models: dict[str, Any], tokenizers: dict[str, Any]
) -> None:
    model, tokenizer, entry = models[ENTRIES[name][0]], tokenizers[ENTRIES[name][1]], ENTRIES[name][2]
    good = [("好", "的")] if name == "pair_scores" else ["a [MASK]"]
    for batch_size in (-1, 0):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} must be at least 1"):
            entry(model, tokenizer, good, batch_size=batch_size)
    for batch_size in (1.5, True, None, "2"):
        with pytest.raises(TypeError, match=r"batch_size=.*must be a whole number"):
            entry(model, tokenizer, good, batch_size=batch_size)
    with pytest.raises(TypeError, match="the model comes first, then its tokenizer"):
        entry(tokenizer, model, good)
    with pytest.raises(TypeError, match="model is a NoneType"):
        entry(None, tokenizer, good)
    for wrong in (None, "glm-130b"):
        with pytest.raises(TypeError, match="tokenizer is a"):
            entry(model, wrong, good)
    argument = "pairs|texts|contexts|generations"
    for texts in (None, 3, b"ab", {"a": 1}, {"a"}, [None], [3]):
        with pytest.raises(TypeError, match=rf"({argument})(\[0\])? is"):
            entry(model, tokenizer, texts)


def test_settings_that_nothing_can_follow(models: dict[str, Any], tokenizers: dict[str, Any]) -> None:
    glm = models["glm"], tokenizers["glm"]
    for settings, error in (
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5 is a float"),
        ({"max_length": True}, "max_length=True is a bool"),
        ({"num_beams": -1}, "num_beams=-1 must be at least 1"),
        ({"generation_config": {}}, "not a GenerationConfig"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            fill_blanks(*glm, "a [MASK]", **settings)
    with pytest.raises(ValueError, match="has an answer written out"):
        fill_blanks(*glm, "the [gMASK]<sop> work")
    with pytest.raises(ValueError, match="half a surrogate pair"):
        fill_blanks(*glm, "\ud800 [MASK]")
    deep: Any = "a"
    for _ in range(2000):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nests more than 64 deep"):
        uie(models["uie"], tokenizers["ernie"], deep, "好")
    with pytest.raises(TypeError, match="normalize='no' is a str; it must be True or False"):
        sentence_embeddings(models["nlu"], tokenizers["ernie3"], "好", normalize="no")  # type: ignore[arg-type]


TEXTS = ["今天 天气 真好 " * length for length in (1, 2, 5, 9)]
CALLS: list[dict[str, Any]] = [
    {"padding": True},
    {"truncation": True, "max_length": 7},
    {"padding": "max_length", "max_length": 60},
    {},
    {"truncation": True, "max_length": 13, "padding": True},
    {"padding": True, "padding_side": "right"},
]


def wrong_rows(tokenizer: Any, calls: int, threads: int) -> int:
    """How many of the batches made by several threads are not what one thread makes."""
    expected = [dict(tokenizer(TEXTS, **call)) for call in CALLS]
    wrong: list[int] = []

    def work(first: int) -> None:
        for number in range(first, first + calls):
            which = number % len(CALLS)
            try:
                if dict(tokenizer(TEXTS, **CALLS[which])) != expected[which]:
                    wrong.append(which)
            except RuntimeError:  # "Already borrowed", of the library
                wrong.append(which)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        running = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return len(wrong)


class NoLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@pytest.mark.parametrize("family", ["glm", "ernie", "ernie3"])
def test_threads_share_a_tokenizer(family: str, tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers[family]
    assert wrong_rows(tokenizer, 60, 6) == 0
    if family != "glm":  # it makes its rows without the library's state
        monkeypatch.setitem(tokenizer.__dict__, "_calls", NoLock())
        assert wrong_rows(tokenizer, 60, 6) > 0


@pytest.mark.parametrize("family", ["glm", "ernie", "ernie3"])
def test_copies_have_locks_of_their_own(family: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[family]
    for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert again._calls is not tokenizer._calls
        assert dict(again(TEXTS)) == dict(tokenizer(TEXTS))
    assert copy.copy(tokenizer)._calls is tokenizer._calls  # which shares the library's tokenizer


@pytest.mark.parametrize("family", ["glm", "ernie", "ernie3"])
def test_ids_that_no_token_has(family: str, tokenizers: dict[str, Any]) -> None:
    """As the library has it: None as a token, nothing in a text; negative and endless ones as well."""
    tokenizer = tokenizers[family]
    ids = tokenizer("今天 work")["input_ids"]
    text, tokens = tokenizer.decode(ids), tokenizer.convert_ids_to_tokens(ids)
    for odd in (-1, -100, len(tokenizer) + 50, 2**32 - 1, 2**32, 2**70):
        assert tokenizer.decode([odd, *ids, odd]) == text
        assert tokenizer.batch_decode([[odd, *ids], [odd]]) == [text, ""]
        assert tokenizer.decode(odd) == ""
        assert tokenizer.convert_ids_to_tokens(odd) is None
        named = tokenizer.convert_ids_to_tokens([odd, *ids])
        assert named == [None, *tokens]
        assert tokenizer.convert_tokens_to_string(named) == tokenizer.convert_tokens_to_string(tokens)
    for kind in (np.array, torch.tensor):
        assert tokenizer.decode(kind([*ids, -100])) == text
        assert tokenizer.convert_ids_to_tokens(kind(ids)) == tokens
        assert tokenizer.convert_ids_to_tokens(kind(ids)[0]) == tokens[0]
    for wrong in ([None], [1.5], "a", None):
        with pytest.raises(TypeError, match="Ids are whole numbers"):
            tokenizer.decode(wrong)


@pytest.mark.parametrize("family", ["glm", "ernie", "ernie3"])
def test_odd_calls_of_tokenizers(family: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers[family]
    for settings in ({}, {"padding": True}, {"text_pair": []}):
        assert dict(tokenizer([], **settings)) == {name: [] for name in tokenizer.model_input_names}
    assert tokenizer([], return_tensors="pt")["input_ids"].shape == (0, 0)
    assert "offset_mapping" in tokenizer([], return_offsets_mapping=True)
    for wrong in (3, b"ab", [None], [b"a"], [["a"]], {"a": 1}):
        with pytest.raises((TypeError, ValueError), match=r"text(\[0\])? is a|must be a string"):
            tokenizer(wrong)
    for settings, said in (
        ({"max_length": -1, "truncation": True}, "max_length=-1 must be at least 0"),
        ({"max_length": 1.5, "truncation": True}, "max_length=1.5 is a float"),
        ({"padding": True, "pad_to_multiple_of": -4}, "pad_to_multiple_of=-4"),
        ({"padding": True, "padding_side": "top"}, "padding_side='top' is not one of"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            tokenizer("a", **settings)


IDS = torch.arange(20, 30)[None]
WRONG_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": IDS[:0]}, "at least one row"),
    ({"input_ids": IDS[:, :0]}, "one token"),
    ({"input_ids": IDS[0]}, "it must be \\(batch, tokens\\)"),
    ({"input_ids": IDS[None]}, "it must be \\(batch, tokens\\)"),
    ({"input_ids": IDS.tolist()}, "it must be a tensor"),
    *(({"input_ids": IDS.to(dtype)}, "ids are torch.int64") for dtype in (torch.int8, torch.uint8, torch.int16)),
    *(({"input_ids": IDS.to(dtype)}, "ids are torch.int64") for dtype in (torch.float32, torch.bool)),
    ({"input_ids": IDS - 25}, r"input_ids\[0, 0\] = -5 is outside"),
    ({"input_ids": IDS + 100}, r"input_ids\[0, 8\] = 128 is outside"),
    ({"input_ids": IDS, "position_ids": IDS[:, :5]}, "position_ids has shape"),
    ({"input_ids": IDS, "position_ids": IDS[0]}, "position_ids has shape"),
    ({"input_ids": IDS, "position_ids": IDS.repeat(2, 1)}, "position_ids has shape"),
    ({"input_ids": IDS, "position_ids": IDS.float()}, "they must be whole numbers"),
    ({"input_ids": IDS, "position_ids": IDS - 25}, r"position_ids\[0, 0\] = -5 is out of range"),
    ({"input_ids": IDS, "attention_mask": torch.ones(10)}, "it must be \\(batch, tokens\\)"),
    ({"input_ids": IDS, "attention_mask": torch.ones(1, 9)}, "attention_mask has shape"),
    ({"input_ids": IDS, "attention_mask": torch.ones(2, 10)}, "attention_mask has shape"),
    ({"input_ids": IDS, "attention_mask": torch.ones(1, 1, 10, 9).bool()}, "attention_mask has shape"),
    ({"input_ids": IDS, "attention_mask": torch.ones(1, 1, 1, 10, 10)}, "dimensions"),
    ({"input_ids": IDS, "attention_mask": torch.full((1, 10), 2)}, "other values than 1"),
    ({"input_ids": IDS, "attention_mask": torch.full((1, 10), torch.nan)}, "other values than 1"),
    ({"input_ids": IDS, "inputs_embeds": torch.zeros(1, 10, 32)}, "input_ids (and|or) inputs_embeds"),
    ({}, "input_ids (and|or) inputs_embeds"),
    ({"inputs_embeds": torch.zeros(1, 10, 31)}, "inputs_embeds has shape"),
    ({"inputs_embeds": torch.zeros(10, 32)}, "inputs_embeds has shape"),
    ({"inputs_embeds": torch.zeros(1, 10, 32).int()}, "they must be floating point"),
]


@pytest.mark.parametrize("name", ["glm", "nlu", "nlg", "uie", "utc"])
def test_inputs_of_models(name: str, models: dict[str, Any]) -> None:
    extra = {"omask_positions": torch.tensor([[1, 3]]), "cls_positions": torch.tensor([4])} if name == "utc" else {}
    for inputs, said in WRONG_INPUTS:
        with pytest.raises((TypeError, ValueError), match=said):
            models[name](**inputs, **extra)


@pytest.mark.parametrize("name", ["glm", "nlg"])
def test_patterns_labels_and_caches(name: str, models: dict[str, Any]) -> None:
    """Three dimensions were left unread, labels of another shape broadcast."""
    model = models[name]
    for inputs, said in (
        ({"attention_mask": torch.ones(1, 10, 10)}, "2 or 4 dimensions"),
        ({"attention_mask": torch.ones(1, 1, 10, 10).long()}, "must be bool"),
        ({"labels": torch.full((10,), 5)}, "labels has shape"),
        ({"labels": torch.full((1, 10), 999)}, r"labels\[0, 0\] = 999 is no class"),
        ({"labels": torch.full((1, 10), 5.0)}, "classes are whole numbers"),
        ({"logits_to_keep": -1}, "logits_to_keep=-1 must be 0"),
        ({CACHE_NAME: ((1, 2),)}, "it must be a Cache"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            model(IDS, **inputs)  # type: ignore[arg-type]  # that is the point
    for ids in (IDS[:0], IDS[:, :0], IDS[0], IDS.to(torch.int8), IDS + 100):
        with pytest.raises((TypeError, ValueError), match="input_ids"):
            model.generate(ids, max_new_tokens=1)


def test_positions_that_no_table_holds(models: dict[str, Any]) -> None:
    """fp16 has no angle behind position 65504: logits were NaN. UIE and UTC have a table of positions."""
    with pytest.raises(
        ValueError, match=r"position_ids\[0, 0\] = 65520 .* to 65504 \(config.rotary_dtype='float16'\)"
    ):
        models["glm"](IDS, position_ids=IDS + 65500)
    assert models["glm"](IDS, position_ids=IDS + 65470).logits.isfinite().all()
    with pytest.raises(ValueError, match="33 tokens are longer than the model's 32 positions"):
        models["uie"](torch.full((1, 33), 5))
    with pytest.raises(ValueError, match=r"to 31 \(config.max_position_embeddings\)"):
        models["uie"](IDS, position_ids=IDS + 10)


def test_places_and_labels_of_the_task_heads(models: dict[str, Any]) -> None:
    places = {"omask_positions": torch.tensor([[1, 3]]), "cls_positions": torch.tensor([4])}
    for wrong in (
        {"omask_positions": torch.tensor([[1, 30]])},
        {"omask_positions": torch.tensor([[1, -3]])},
        {"cls_positions": torch.tensor([[4]])},
        {"cls_positions": torch.tensor([40])},
        {"labels": torch.tensor([[1]])},
        {"labels": torch.tensor([[1, 2]])},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            models["utc"](IDS, **places | wrong)
    for positions in (torch.full((1, 10), 2), torch.full((1, 10), -100), torch.zeros(2, 10)):
        with pytest.raises(ValueError, match="start_positions"):
            models["uie"](IDS, start_positions=positions, end_positions=positions)


def test_random_rows_and_shapes() -> None:
    """The short form; `python -m tests.faults` runs the long one."""
    counts, wrong = runtime_fuzz.run(6, 1)
    assert not wrong
    assert len(counts) == 6


def test_labels_of_the_positions_that_are_kept_are_scored() -> None:
    """As the training script passes them: the last positions' labels alone."""
    torch.manual_seed(0)
    model = tiny_models.tiny_model()
    ids = torch.tensor([[5, 6, model.config.sop_token_id, 7, 8, 9]])
    labels = torch.full_like(ids, -100)
    labels[:, 3:] = ids[:, 3:]
    whole = model(ids, labels=labels).loss
    assert torch.allclose(model(ids, labels=labels[:, -4:], logits_to_keep=4).loss, whole)
    with pytest.raises(ValueError, match="labels has shape"):
        model(ids, labels=labels[:, -3:], logits_to_keep=4)
