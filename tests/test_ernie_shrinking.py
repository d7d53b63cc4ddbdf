"""Smaller encoders: what is pruned, what is kept of a vocabulary, integers in embeddings, all beside the whole model.

The command as a whole, on a trained model: `test_ernie_shrinking_command.py`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    ErnieConfig,
    ErnieForMaskedLM,
    ErnieForQuestionAnswering,
    ErnieForSequenceClassification,
    ErnieForTokenClassification,
)

from hf_glm_ernie import ErnieCompactConfig, ErnieForUIE, ErnieForUTC, ErnieTokenizer, ErnieUIEConfig, ErnieUTCConfig
from hf_glm_ernie.compact_ernie import Int8Embedding, quantize_embeddings
from hf_glm_ernie.ernie_shrinking.distillation import (
    CLASSES,
    PLACES,
    YES_OR_NO,
    answer_loss,
    distillation_loss,
    kind_of_answers,
)
from hf_glm_ernie.ernie_shrinking.importance import Importance, measure_importance
from hf_glm_ernie.ernie_shrinking.pruning import compact_copy, kept, prune
from hf_glm_ernie.ernie_shrinking.vocabulary import (
    keep_positions,
    keep_rows,
    needed_tokens,
    reduce_tokenizer,
    texts_in,
)

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
    "use_task_id": True,
    "initializer_range": 0.2,
}
CONFIGS = {ErnieForUIE: ErnieUIEConfig, ErnieForUTC: ErnieUTCConfig}
CLASSES_PRUNED = (
    ErnieForSequenceClassification,
    ErnieForTokenClassification,
    ErnieForQuestionAnswering,
    ErnieForUIE,
    ErnieForUTC,
)
# Sums in another order; 3e-7 seen, values of about 1.
ROUNDING = 2e-6


def build(model_class: Any, **settings: Any) -> Any:
    torch.manual_seed(3)
    return model_class(CONFIGS.get(model_class, ErnieConfig)(**SIZES | settings)).eval()


def inputs_of(model: Any, labels: bool = False) -> dict[str, torch.Tensor]:
    """Three rows, two of them padded; with labels for the model's loss."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 60, (3, 9), generator=random)
    ids[1, 6:] = ids[2, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": torch.zeros_like(ids)}
    name = type(model).__name__
    if name.endswith("UTC"):
        inputs |= {"omask_positions": torch.tensor([[1, 3], [1, 0], [1, 2]]), "cls_positions": torch.zeros(3).long()}
    if labels:
        bits = torch.randint(0, 2, (3, 9), generator=random)
        inputs |= {
            "ErnieForUIE": {"start_positions": bits, "end_positions": bits.flip(1)},
            "ErnieForUTC": {"labels": torch.tensor([[1, 0], [1, -100], [0, 1]])},
            "ErnieForTokenClassification": {"labels": bits},
        }.get(name, {"labels": torch.tensor([0, 1, 0])})
    return inputs


def logits_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        outputs = model(**inputs)
    names = ("start_logits", "end_logits") if "start_logits" in outputs else ("logits",)
    return torch.stack([outputs[name] for name in names])


def assert_same_values(one: Any, other: Any) -> None:
    """Products may differ in their last bit: where a file's tensors lie in memory decides how they are computed."""
    mine, its = one.state_dict(), other.state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)


def random_importance(model: Any) -> Importance:
    random = torch.Generator().manual_seed(7)
    layers = model.config.num_hidden_layers
    heads = model.base_model.encoder.layer[0].attention.self.num_attention_heads
    return Importance(
        torch.rand(layers, heads, generator=random),
        torch.rand(layers, model.config.intermediate_size, generator=random),
    )


@torch.no_grad()
def zeroed(model: Any, importance: Importance, width: float) -> Any:
    """The whole model, with what is to be removed set to zero: heads where they end, neurons where they end."""
    model = compact_copy(model)
    size = model.base_model.encoder.layer[0].attention.self.attention_head_size
    for layer, heads, neurons in zip(
        model.base_model.encoder.layer, kept(importance.heads, width), kept(importance.neurons, width), strict=True
    ):
        for linear, places, wide in (
            (layer.attention.output.dense, heads, size),
            (layer.output.dense, neurons, 1),
        ):
            gone = sorted(set(range(linear.in_features // wide)) - set(places.tolist()))
            for place in gone:
                linear.weight[:, place * wide : (place + 1) * wide] = 0
    return model


@pytest.mark.parametrize("model_class", CLASSES_PRUNED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("width", [0.5, 0.75, 1])
def test_pruned_is_the_whole_with_zeros(model_class: Any, width: float, tmp_path: Path) -> None:
    model = build(model_class)
    importance = random_importance(model)
    student = prune(model, importance, width)
    attention = student.base_model.encoder.layer[1].attention
    assert attention.self.query.weight.shape == attention.output.dense.weight.T.shape == (4 * int(6 * width), 24)
    assert student.config.intermediate_size == int(40 * width)
    assert student.config.num_attention_heads == 6
    expected = logits_of(zeroed(model, importance, width), inputs_of(model))
    torch.testing.assert_close(logits_of(student, inputs_of(model)), expected, rtol=0, atol=ROUNDING)
    student.save_pretrained(tmp_path)
    opened = type(student).from_pretrained(tmp_path).eval()
    assert_same_values(opened, student)
    torch.testing.assert_close(logits_of(opened, inputs_of(model)), expected, rtol=0, atol=ROUNDING)


def test_auto_classes_open_the_folder_and_what_was_pruned_is_pruned_again(tmp_path: Path) -> None:
    model = build(ErnieForSequenceClassification, id2label={0: "甲", 1: "乙", 2: "丙"})
    student = prune(model, random_importance(model), 0.67)
    student.save_pretrained(tmp_path)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(opened.config, ErnieCompactConfig)
    assert opened.config.id2label == {0: "甲", 1: "乙", 2: "丙"}
    assert opened.config.kept_attention_heads == 4
    again = prune(opened, random_importance(opened), 0.5)
    assert again.config.kept_attention_heads == 2
    encoder = AutoModel.from_pretrained(tmp_path)
    ids = inputs_of(model)
    assert_same_values(encoder, opened.ernie)
    assert encoder.eval()(**ids).last_hidden_state.shape == (3, 9, 24)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_attention_of_the_host_takes_fewer_heads(implementation: str) -> None:
    model = build(ErnieForTokenClassification, attn_implementation=implementation)
    student = prune(model, random_importance(model), 0.5)
    assert student.config._attn_implementation == implementation
    expected = logits_of(zeroed(model, random_importance(model), 0.5), inputs_of(model))
    torch.testing.assert_close(logits_of(student, inputs_of(model)), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("model_class", CLASSES_PRUNED[:2] + CLASSES_PRUNED[3:], ids=lambda one: one.__name__)
def test_importance_is_the_change_of_the_loss(model_class: Any) -> None:
    """A head's gradient against a difference quotient, a neuron's against autograd on a mask of its own."""
    model = build(model_class).double()
    inputs = inputs_of(model, labels=True)
    found = measure_importance(model, [inputs])
    layer, step = model.base_model.encoder.layer[1], 1e-2
    dense = layer.attention.output.dense
    for head in (0, 5):
        losses = []
        for factor in (1 + step, 1 - step):
            with torch.no_grad():
                whole = dense.weight.clone()
                dense.weight[:, 4 * head : 4 * head + 4] *= factor
                losses.append(model(**inputs).loss.item())
                dense.weight.copy_(whole)
        expected = abs(losses[0] - losses[1]) / (2 * step)
        # UIE's and UTC's losses are fp32, 6e-8 of 0.7: 2e-6 in the quotient. Its own error is a third derivative's.
        assert found.heads[1, head].item() == pytest.approx(expected, rel=2e-3, abs=1e-5)
    model(**inputs).loss.backward()
    into, out = layer.intermediate.dense, layer.output.dense
    for neuron in (0, 17):
        before = sum(into.weight[neuron, column] * into.weight.grad[neuron, column] for column in range(24))
        before += into.bias[neuron] * into.bias.grad[neuron]
        behind = sum(out.weight[row, neuron] * out.weight.grad[row, neuron] for row in range(24))
        assert found.neurons[1, neuron].item() == pytest.approx((before.abs() + behind.abs()).item(), rel=1e-5)


def test_importance_leaves_the_model_and_sees_every_batch() -> None:
    model = build(ErnieForSequenceClassification)
    inputs = inputs_of(model, labels=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    once, twice = measure_importance(model, [inputs]), measure_importance(model, [inputs, inputs])
    torch.testing.assert_close(twice.heads, 2 * once.heads)
    torch.testing.assert_close(twice.neurons, 2 * once.neurons)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_pruned_says_so() -> None:
    model = build(ErnieForSequenceClassification)
    for width in (0, 1.5, True, "half"):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            prune(model, random_importance(model), width)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ErnieForMaskedLM cannot be made smaller"):
        prune(build(ErnieForMaskedLM), random_importance(model), 0.5)
    with pytest.raises(ValueError, match="no rows"):
        measure_importance(model, [])
    with pytest.raises(ValueError, match="no loss"):
        measure_importance(model, [inputs_of(model)])
    with pytest.raises(Exception, match="kept_attention_heads=7 is more than num_attention_heads=6"):
        ErnieCompactConfig(hidden_size=24, num_attention_heads=6, kept_attention_heads=7)
    with pytest.raises(Exception, match="embedding_bits=4"):
        ErnieCompactConfig(embedding_bits=4)


def test_answers_are_read_as_the_task_reads_them() -> None:
    kinds = {one: kind_of_answers(build(one)) for one in CLASSES_PRUNED}
    assert list(kinds.values()) == [CLASSES, CLASSES, PLACES, YES_OR_NO, YES_OR_NO]
    several = build(ErnieForSequenceClassification, problem_type="multi_label_classification")
    assert kind_of_answers(several) == YES_OR_NO
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    there = torch.tensor([True, True, False])
    expected = F.kl_div(student[:2].log_softmax(-1), teacher[:2].softmax(-1), reduction="batchmean")
    entropy = -(teacher[:2].softmax(-1) * teacher[:2].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(answer_loss(student, teacher, there, CLASSES), expected + entropy)


@pytest.mark.parametrize("model_class", CLASSES_PRUNED, ids=lambda one: one.__name__)
def test_the_loss_is_least_at_the_teacher_and_padding_changes_nothing(model_class: Any) -> None:
    teacher = build(model_class)
    student = prune(teacher, random_importance(teacher), 0.5)
    inputs = inputs_of(teacher)
    kind = kind_of_answers(teacher)

    def loss(model: Any, given: dict[str, torch.Tensor]) -> float:
        with torch.no_grad():
            outputs = [one(**given, output_hidden_states=True) for one in (model, teacher)]
            return distillation_loss(outputs[0], outputs[1], given, kind, 0).item()

    assert loss(teacher, inputs) < loss(student, inputs)
    wider = {name: value if value.shape[-1] != 9 else F.pad(value, (0, 5)) for name, value in inputs.items()}
    # Masked tokens get a weight of exactly 0, but sums are taken in another order: 2e-7 seen.
    assert loss(student, wider) == pytest.approx(loss(student, inputs), abs=1e-5)


# The vocabulary ------------------------------------------------------------------------------------------------------

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["new", "york", "##er", "##k", "yor", "hotel", "##s", "un", "##happy", "##hap", "happy", "a", "b", "ab", "abc"]
CHARACTERS = [*"北京大学生天气很好的人口一二三。，!0123456789", "##0", "##1", "##x", "x"]
CORPUS = ["北京大学的学生。", "New Yorkers!", "hotels 10", "abq", "天气 [MASK] 很好"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> ErnieTokenizer:
    file = tmp_path / "vocab.txt"
    tokens = [*SPECIAL, *WORDS, *CHARACTERS, "[UNK]"]
    file.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    made = ErnieTokenizer(str(file), model_max_length=48)
    made.add_special_tokens({"extra_special_tokens": ["[O-MASK]"]})
    made.add_tokens(["塞纳河"])
    return made


def test_a_corpus_has_the_same_tokens_and_the_same_vectors(tokenizer: ErnieTokenizer, tmp_path: Path) -> None:
    model = build(ErnieForSequenceClassification, vocab_size=80)
    corpus = [*CORPUS, "[O-MASK]北京塞纳河"]
    smaller, old_ids = reduce_tokenizer(tokenizer, needed_tokens(tokenizer, corpus, characters="none"))
    assert len(smaller) == len(old_ids) < len(tokenizer)
    assert old_ids == sorted(old_ids)
    assert (smaller.pad_token_id, smaller.unk_token_id) == (0, len(old_ids) - 3)  # last but for the two added ones
    student = compact_copy(model)
    keep_rows(student, old_ids, smaller.pad_token_id)
    keep_positions(student, 16)
    assert student.config.vocab_size == len(old_ids)
    folder = tmp_path / "smaller"
    student.save_pretrained(folder)
    smaller.save_pretrained(folder)
    opened = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    again = ErnieTokenizer.from_pretrained(folder)
    plain = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))  # as a program without ours reads it
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert [again.convert_tokens_to_ids(token) for token in lines] == list(range(len(lines)))
    assert lines[-1] == "[UNK]"
    for text in corpus:
        whole, part = tokenizer(text, return_tensors="pt"), again(text, return_tensors="pt")
        assert again.convert_ids_to_tokens(part.input_ids[0]) == tokenizer.convert_ids_to_tokens(whole.input_ids[0])
        assert [old_ids[index] for index in part.input_ids[0]] == whole.input_ids[0].tolist()
        assert plain(text).input_ids == part.input_ids[0].tolist()
        whole_words, words = (one.get_input_embeddings() for one in (model, opened))
        assert torch.equal(words(part.input_ids), whole_words(whole.input_ids))
        torch.testing.assert_close(opened(**part).logits, model(**whole).logits, rtol=0, atol=ROUNDING)


def test_unknown_words_stay_unknown(tokenizer: ErnieTokenizer) -> None:
    """`abq` is [UNK], for `##q` is no piece; without `ab` among the tokens, `a` and `##b...` would be tried."""
    tokens = needed_tokens(tokenizer, ["abcx", "abq"], characters="none")
    assert {"abc", "##x", "ab"} <= tokens
    smaller, _ = reduce_tokenizer(tokenizer, tokens)
    assert smaller.tokenize("abq abcx") == tokenizer.tokenize("abq abcx") == ["[UNK]", "abc", "##x"]


def test_characters_that_are_asked_for_stay(tokenizer: ErnieTokenizer) -> None:
    kept_of = {
        which: needed_tokens(tokenizer, ["北京"], characters=which) for which in ("none", "ascii", "all", "天0")
    }
    specials = {*SPECIAL, "[UNK]"}
    assert kept_of["none"] == {"北", "京"} | specials
    assert kept_of["ascii"] - kept_of["none"] == {*"0123456789!abx", "##0", "##1", "##x", "##s", "##k"}
    assert kept_of["all"] == {*CHARACTERS, "a", "b", "##s", "##k"} | specials
    assert kept_of["天0"] - kept_of["none"] == {"天", "0", "##0"}


def test_vocabularies_that_cannot_be_cut(tokenizer: ErnieTokenizer) -> None:
    with pytest.raises(ValueError, match=r"\[CLS\].*cannot be left out"):
        reduce_tokenizer(tokenizer, {"[PAD]", "[SEP]", "[MASK]", "[UNK]"})
    with pytest.raises(ValueError, match="the model 60 rows"):
        keep_rows(build(ErnieForSequenceClassification), [0, 60], 0)
    assert list(texts_in({"a": ["x", {"b": "y"}], "n": 3, "t": ("z", None)})) == ["x", "y", "z"]


# INT8 of embeddings --------------------------------------------------------------------------------------------------


def test_integers_of_embeddings(tmp_path: Path) -> None:
    model = compact_copy(build(ErnieForUIE))
    whole = model.ernie.embeddings.word_embeddings.weight.detach().clone()
    inputs = inputs_of(model)
    before = logits_of(model, inputs)
    quantize_embeddings(model.base_model)
    model.config.embedding_bits = 8
    table = model.ernie.embeddings.word_embeddings
    assert isinstance(table, Int8Embedding)
    # Half of a row's scale, and what rounding that scale to fp16 (2 ** -11) does to the largest integer.
    bound = table.weight_scale * (0.5 + 127 * 2**-11)
    assert ((table(torch.arange(60)) - whole).abs() <= bound).all()
    # Half a step of 1/127 of the largest value a row, carried through two layers with large weights: 0.01 seen.
    torch.testing.assert_close(logits_of(model, inputs), before, rtol=0, atol=0.05)
    model.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path).eval()
    assert opened.ernie.embeddings.word_embeddings.weight.dtype == torch.int8
    assert_same_values(opened, model)
    halved = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert halved.ernie.embeddings.word_embeddings(inputs["input_ids"]).dtype == torch.bfloat16
    keep_rows(opened, [0, *range(5, 60)], 0)
    assert torch.equal(opened.ernie.embeddings.word_embeddings(torch.arange(1, 56)), table(torch.arange(5, 60)))
