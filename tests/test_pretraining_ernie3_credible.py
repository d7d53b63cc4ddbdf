"""Adversarial texts: prompts, cuts, labels, and the generator made of a model."""

from collections import Counter

import pytest
import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_glm_ernie.ernie3_training.credible import AdversarialTexts, CredibleRows, ModelContinuations, within
from hf_glm_ernie.ernie3_training.splitting import split_sentences
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM
from hf_glm_ernie.tokenization_ernie import ErnieTokenizer
from tests.support.ernie3_pretraining_tiny import PARAGRAPHS, tiny_model
from tests.support.ernie3_rows import small_tokenizer, within_three_sigma
from tests.support.ernie_vocabulary import SMALL, write_vocabulary

TEXT = "今天天气真好。我们去公园玩吧。百度是一个平台。北京市的大桥。"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def count(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def continue_with(text):
    def generate(prompts):
        return [text for _ in prompts]

    return generate


@pytest.mark.parametrize(("text", "most"), [(TEXT, 3), ("今天。玩吧。去。", 2), ("今天。玩吧。", 1), ("今天。", 1)])
def test_prompts_are_the_first_one_to_three_sentences(tokenizer, text, most):
    texts = AdversarialTexts(continue_with("玩。"), tokenizer)
    trials = 1500
    found = Counter(texts.prompt(text, index) for index in range(trials))
    sentences = split_sentences(text)
    assert set(found) == {"".join(sentences[:n]) for n in range(1, most + 1)}
    for times in found.values():
        assert most == 1 or within_three_sigma(times, trials, 1 / most)


def test_every_paragraph_gives_an_original_and_a_generated_text(tokenizer):
    texts = ["".join(one) for one in PARAGRAPHS]
    made = AdversarialTexts(continue_with("大江的大桥。"), tokenizer)({"text": texts}, range(4))
    assert made["credible_labels"] == [1, 0] * 4
    assert made["text"][::2] == texts
    for original, generated in zip(made["text"][::2], made["text"][1::2], strict=True):
        assert generated.endswith("大江的大桥。")
        assert original.startswith(generated.removesuffix("大江的大桥。"))


def test_texts_keep_to_the_length_and_lose_the_incomplete_sentence(tokenizer):
    long = "今天天气真好。" * 12
    for room in range(1, 40):
        cut = within(tokenizer, long, room)
        assert count(tokenizer, cut) <= room
        assert cut == "今天天气真好。" * (len(cut) // 7)
        assert count(tokenizer, cut + "今天天气真好。") > room
    assert within(tokenizer, "今天天气", 4) == "今天天气"
    made = AdversarialTexts(continue_with("玩吧。" * 30), tokenizer, max_length=41)({"text": [long]}, [0])
    for text in made["text"]:
        assert text.endswith("。")
        assert 30 < count(tokenizer, text) <= 40


def test_paragraphs_without_a_continuation_are_left_out_and_counted(tokenizer, caplog):
    with caplog.at_level("WARNING"):
        made = AdversarialTexts(continue_with(" "), tokenizer)({"text": [TEXT, TEXT]}, [0, 1])
    assert made == {"text": [], "credible_labels": []}
    assert "2 of 2 paragraphs gave no rows" in caplog.text


def test_bad_texts_and_generators(tokenizer):
    with pytest.raises(ValueError, match="credible, row 3: column 'text' is an empty text"):
        AdversarialTexts(continue_with("玩"), tokenizer)({"text": [" "]}, [3])
    with pytest.raises(ValueError, match="the generator returned 0 texts for 1 prompts"):
        AdversarialTexts(lambda prompts: [], tokenizer)({"text": [TEXT]}, [0])


def test_rows(tokenizer):
    datasets = pytest.importorskip("datasets", reason="needs the datasets library, whose map the builders are for")
    data = datasets.Dataset.from_dict({"text": ["".join(one) for one in PARAGRAPHS]})
    options = {"batched": True, "with_indices": True, "remove_columns": ["text"], "num_proc": 2}
    texts = data.map(AdversarialTexts(continue_with("大江。"), tokenizer), **options)
    assert texts["credible_labels"][:] == [1, 0] * 4
    rows = texts.map(CredibleRows(tokenizer), **options)
    for text, label, row in zip(texts["text"], texts["credible_labels"], rows, strict=True):
        expected = {"input_ids": tokenizer(text)["input_ids"], "credible_labels": label, "task": "credible"}
        assert row == expected
    with pytest.raises(ValueError, match="row 0: credible_labels=2 must be 1"):
        CredibleRows(tokenizer)({"text": ["今"], "credible_labels": [2]}, [0])
    with pytest.raises(ValueError, match="the text has 40 tokens"):
        CredibleRows(tokenizer, max_length=30)({"text": ["今天" * 20], "credible_labels": [1]}, [0])


@pytest.fixture(scope="module")
def model(tokenizer):
    return Ernie3ForCausalLM(tiny_model(tokenizer).config).eval()


def test_a_models_continuations_are_those_of_single_prompts(tokenizer, model):
    """Greedy, so that a loop over the whole forward gives the same words: batches and padding change nothing."""
    prompts = ["今天。", "我们去公园玩吧。百度。", "北京", "hello", "大桥。"]
    greedy = {"do_sample": False, "repetition_penalty": 1.0, "top_k": None, "temperature": None}
    ours = ModelContinuations(model, tokenizer, max_length=32, batch_size=2, max_new_tokens=8, **greedy)
    texts = ours(prompts)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        written = []
        while len(written) < 8:
            with torch.no_grad():
                written.append(model(torch.tensor([ids + written])).logits[0, -1].argmax().item())
            if written[-1] == tokenizer.eos_token_id:
                break
        assert text == ours._text(prompt, written)


def test_what_a_model_wrote_becomes_a_natural_text(tokenizer, model):
    ours = ModelContinuations(model, tokenizer)
    end = tokenizer.eos_token_id
    ids = tokenizer("今天 hello world。我们去", add_special_tokens=False)["input_ids"]
    assert ours._text("。", [*ids, end, 5, 5]) == "今天hello world。我们去"
    assert ours._text("。", ids) == "今天hello world。"
    assert ours._text("。", [end]) == ""


@pytest.mark.parametrize(
    ("prompt", "written", "joined"),
    [
        ("hello.", "world.", "hello. world."),
        ("hello. ", "world.", "hello. world."),
        ("hello。", "world.", "hello。world."),
        ("hello.", "今天。", "hello.今天。"),
    ],
)
def test_a_prompt_and_what_was_written_read_as_one_text(tokenizer, model, prompt, written, joined):
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert prompt + ModelContinuations(model, tokenizer)._text(prompt, ids) == joined


@pytest.fixture(scope="module")
def other():
    """A small GPT-2 with a byte-level tokenizer: neither [CLS] nor a pad token."""
    tokens = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator([TEXT, "Hello world. Hello again."] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=96, eos_token_id=0)
    return GPT2LMHeadModel(config).eval(), tokenizer


def test_any_causal_model_with_its_own_tokenizer_writes(other):
    """The same words as from each prompt alone, and what natural texts may have stays: 中 b with its blank."""
    model, tokenizer = other
    prompts = ["今天 hello.", "Hello world. ", "我们去公园玩吧。"]
    greedy = {"do_sample": False, "repetition_penalty": 1.0, "top_k": None, "temperature": None}
    ours = ModelContinuations(model, tokenizer, max_length=64, max_new_tokens=8, **greedy)
    for prompt, text in zip(prompts, ours(prompts), strict=True):
        ids = tokenizer(prompt.rstrip(), return_tensors="pt")
        alone = model.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[
            0, ids["input_ids"].shape[1] :
        ]
        assert text == ours._text(prompt, alone.tolist())
    written = [*tokenizer("今天 b. Hello")["input_ids"], 0]
    assert ours._text("。", written) == "今天 b. Hello"
    assert ours._text("Hello. ", [*tokenizer(" again.")["input_ids"], 0]) == "again."
    with pytest.raises(ValueError, match="' ' has no tokens"):
        ours([" "])


def test_what_a_tokenizer_puts_behind_a_text_does_not_end_a_prompt(tmp_path, model):
    tokenizer = ErnieTokenizer(str(write_vocabulary(tmp_path, SMALL["vocabulary"])))
    assert tokenizer("今天。")["input_ids"][-1] == tokenizer.sep_token_id
    ids = ModelContinuations(model, tokenizer)._beginning("今天。")
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "今", "天", "。"]


def test_a_model_makes_adversarial_texts(tokenizer, model):
    torch.manual_seed(0)
    model.train()
    generate = ModelContinuations(model, tokenizer, max_length=64)
    made = AdversarialTexts(generate, tokenizer, max_length=64)(
        {"text": ["".join(one) for one in PARAGRAPHS]}, range(4)
    )
    assert model.training, "the model's mode is as it was"
    assert len(made["text"]) == len(made["credible_labels"]) <= 8
    assert all(count(tokenizer, text) <= 63 for text in made["text"])
    with pytest.raises(ValueError, match="a prompt has 81 tokens and max_length leaves room for 63"):
        generate(["今天" * 40])
