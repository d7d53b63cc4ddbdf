"""Sentence embeddings against a slow loop over single texts."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    ErnieConfig,
    ErnieForMaskedLM,
    ErnieModel,
)

from hf_glm_ernie import ErnieTokenizer, sentence_embeddings
from hf_glm_ernie.ernie_tasks.embeddings import max_of_tokens, mean_of_tokens, mean_sqrt_of_tokens

TEXTS = [
    "巴黎是法国的首都。",
    "",
    "the ferry leaves when the red flag is up",
    "猫",
    "柳溪镇的面包师每天凌晨四点生火，the baker lights her oven at four。" * 3,
    "猫",
    "red flag",
]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
# Padding and the batch change the order of sums. Measured 4.8e-7, where values go up to 2.4.
TOLERANCE = 1e-6
POOLINGS = ("mean", "max", "mean_sqrt", "cls", "pooler")
# The sum of up to 74 tokens over their root: values go up to 14.3. Measured 4.8e-6.
TOLERANCES = dict.fromkeys(POOLINGS, TOLERANCE) | {"mean_sqrt": 1e-5}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = [
        "the",
        "ferry",
        "leaves",
        "when",
        "red",
        "flag",
        "is",
        "up",
        "baker",
        "lights",
        "her",
        "oven",
        "at",
        "four",
    ]
    characters = sorted(set("巴黎是法国的首都。猫柳溪镇面包师每天凌晨四点生火，"))
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[CLS]", "[SEP]", "[MASK]", *characters, *words, "[UNK]"]) + "\n", "utf-8")
    return ErnieTokenizer(str(path), model_max_length=128)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(3)
    config = ErnieConfig(vocab_size=len(tokenizer), use_task_id=True, initializer_range=0.1, **SIZES)
    return ErnieModel(config).eval()


def one_by_one(model, tokenizer, texts, pooling, max_length=None):
    """The definition: a forward for each text, no padding, no mask."""
    rows = []
    for text in texts:
        options = {"truncation": True, "max_length": max_length} if max_length else {}
        ids = torch.tensor([tokenizer(text, **options)["input_ids"]])
        with torch.no_grad():
            outputs = model(ids)
        states = outputs.last_hidden_state[0]
        total, largest = torch.zeros(states.shape[-1]), states[0].clone()
        for state in states:
            total += state
            largest = torch.where(state > largest, state, largest)
        found = {"mean": total / len(states), "max": largest, "mean_sqrt": total / len(states) ** 0.5}
        rows.append((found | {"cls": states[0], "pooler": outputs.pooler_output[0]})[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_equals_the_loop_over_single_texts(model, tokenizer, pooling, batch_size):
    found = sentence_embeddings(model, tokenizer, TEXTS, pooling=pooling, normalize=False, batch_size=batch_size)
    assert found.shape == (len(TEXTS), 32)
    assert found.dtype == torch.float32
    expected = one_by_one(model, tokenizer, TEXTS, pooling)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[pooling])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_have_length_one(model, tokenizer, pooling):
    found = sentence_embeddings(model, tokenizer, TEXTS, pooling=pooling)
    plain = one_by_one(model, tokenizer, TEXTS, pooling)
    torch.testing.assert_close(found, plain / plain.norm(dim=-1, keepdim=True), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(TEXTS)), rtol=0, atol=TOLERANCE)


def test_longer_neighbours_change_nothing(model, tokenizer):
    alone = sentence_embeddings(model, tokenizer, ["猫"])
    among = sentence_embeddings(model, tokenizer, TEXTS)[[3, 5]]
    torch.testing.assert_close(among, alone.expand(2, -1), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_goes_to_the_right_whatever_the_tokenizer_prefers(model, tokenizer, pooling, monkeypatch):
    expected = sentence_embeddings(model, tokenizer, TEXTS, pooling=pooling)
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    assert torch.equal(sentence_embeddings(model, tokenizer, TEXTS, pooling=pooling), expected)


def test_one_text_and_none(model, tokenizer):
    assert torch.equal(
        sentence_embeddings(model, tokenizer, "red flag"), sentence_embeddings(model, tokenizer, ["red flag"])
    )
    records = sentence_embeddings(model, tokenizer, [{"text": "red flag"}])
    assert torch.equal(records, sentence_embeddings(model, tokenizer, {"text": "red flag"}))
    assert torch.equal(records, sentence_embeddings(model, tokenizer, "red flag"))
    with pytest.raises(TypeError, match=r"texts\[0\] is a dict with \['red flag'\]; a dict holds one text"):
        sentence_embeddings(model, tokenizer, {"red flag": 1})
    none = sentence_embeddings(model, tokenizer, [])
    assert (none.shape, none.dtype) == ((0, 32), torch.float32)


def test_a_pair_is_a_title_and_a_text(model, tokenizer):
    """Token types 0 and 1; an empty title keeps its [SEP], as in RocketQA's files without titles."""
    texts = ["猫", ("面包师", "凌晨四点生火"), ["", "猫"], {"text": "red flag"}]
    found = sentence_embeddings(model, tokenizer, texts, pooling="cls", normalize=False, batch_size=3)
    assert tokenizer("", "猫")["token_type_ids"] == [0, 0, 1, 1]
    inputs = [("猫",), ("面包师", "凌晨四点生火"), ("", "猫"), ("red flag",)]
    with torch.no_grad():
        rows = [model(**tokenizer(*one, return_tensors="pt")).last_hidden_state[0, 0] for one in inputs]
    torch.testing.assert_close(found, torch.stack(rows), rtol=0, atol=TOLERANCE)
    assert torch.equal(
        sentence_embeddings(model, tokenizer, iter(texts)), sentence_embeddings(model, tokenizer, texts)
    )
    with pytest.raises(
        TypeError, match=r"texts\[1\] is neither a string nor a pair of them, title and text: \('a',\)"
    ):
        sentence_embeddings(model, tokenizer, ["b", ("a",)])
    with pytest.raises(ValueError, match="max_length=3 leaves no room for text beside the 3 special tokens"):
        sentence_embeddings(model, tokenizer, [("猫", "red")], max_length=3)


@pytest.mark.parametrize("max_length", [3, 8, 128, 1000])
def test_long_texts_are_cut(model, tokenizer, max_length):
    texts = ["猫" * 500, "red flag is up"]
    found = sentence_embeddings(model, tokenizer, texts, normalize=False, max_length=max_length)
    expected = one_by_one(model, tokenizer, texts, "mean", max_length=min(max_length, 128))
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    if max_length >= 128:
        assert torch.equal(found, sentence_embeddings(model, tokenizer, texts, normalize=False))


def test_padding_is_ignored_whatever_stands_there():
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    broken = states.clone()
    broken[1, 2:] = float("nan")
    expected = torch.stack([states[0].mean(0), states[1, :2].mean(0)])
    torch.testing.assert_close(mean_of_tokens(broken, mask), expected)
    torch.testing.assert_close(
        mean_sqrt_of_tokens(broken, mask), expected * torch.tensor([[4.0], [2.0]]).sqrt(), rtol=0, atol=TOLERANCE
    )
    assert torch.equal(max_of_tokens(broken, mask), torch.stack([states[0].amax(0), states[1, :2].amax(0)]))


def test_half_precision_is_averaged_in_single(model, tokenizer):
    half = ErnieModel(model.config).eval()
    half.load_state_dict(model.state_dict())
    found = sentence_embeddings(half.to(torch.bfloat16), tokenizer, TEXTS)
    assert found.dtype == torch.float32
    # bfloat16 keeps 8 bits; measured 0.0024.
    torch.testing.assert_close(found, sentence_embeddings(model, tokenizer, TEXTS), rtol=0, atol=0.006)


def test_mode_is_restored_and_dropout_off(model, tokenizer):
    expected = sentence_embeddings(model, tokenizer, TEXTS)
    model.train()
    try:
        assert torch.equal(sentence_embeddings(model, tokenizer, TEXTS), expected)
        assert model.training
    finally:
        model.eval()


def test_vectors_can_be_trained_on(model, tokenizer):
    """A classifier on top is the usual next step; tensors of the inference mode would refuse it."""
    head = torch.nn.Linear(32, 1)
    head(sentence_embeddings(model, tokenizer, TEXTS)).sum().backward()
    assert head.weight.grad is not None


def test_works_for_other_encoders(tokenizer):
    torch.manual_seed(3)
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.1, **SIZES)).eval()
    found = sentence_embeddings(bert, tokenizer, TEXTS, pooling="cls", normalize=False)
    torch.testing.assert_close(found, one_by_one(bert, tokenizer, TEXTS, "cls"), rtol=0, atol=TOLERANCE)


def test_folder_of_a_masked_language_model_has_the_pooler(model, tokenizer, tmp_path):
    """As the converter writes it: the class has no pooler, the file does."""
    masked = ErnieForMaskedLM(model.config)
    masked.ernie = model
    masked.save_pretrained(tmp_path)
    found = sentence_embeddings(AutoModel.from_pretrained(tmp_path), tokenizer, TEXTS, pooling="pooler")
    assert torch.equal(found, sentence_embeddings(model, tokenizer, TEXTS, pooling="pooler"))
    with pytest.raises(TypeError, match=r"ErnieForMaskedLM gives no hidden states.*model.base_model"):
        sentence_embeddings(AutoModelForMaskedLM.from_pretrained(tmp_path), tokenizer, TEXTS)


def test_refusals(model, tokenizer):
    with pytest.raises(ValueError, match=r"pooling='first' is not one of \('mean', 'max', 'mean_sqrt', 'cls', 'pool"):
        sentence_embeddings(model, tokenizer, TEXTS, pooling="first")
    bare = ErnieModel(model.config, add_pooling_layer=False)
    with pytest.raises(ValueError, match="ErnieModel has no pooler"):
        sentence_embeddings(bare, tokenizer, TEXTS, pooling="pooler")
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        sentence_embeddings(model, tokenizer, TEXTS, batch_size=0)
    with pytest.raises(ValueError, match="max_length=2 leaves no room for text beside the 2 special tokens"):
        sentence_embeddings(model, tokenizer, TEXTS, max_length=2)
    with pytest.raises(TypeError, match=r"texts\[1\] is a int, not a string: 7"):
        sentence_embeddings(model, tokenizer, ["猫", 7])
