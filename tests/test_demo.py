"""The shipped sample on the true path (released files, converter, Auto classes, filled blanks), and its training."""

import contextlib
import io
import random
import unicodedata
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import demo
from examples import train_sample_glm130b as training
from hf_glm_ernie import Glm130bForCausalLM, Glm130bTokenizer, fill_blanks

BLANKS = demo.read_blanks()
RANKS = sorted(demo.SAMPLE.glob("*/mp_rank_*_model_states.pt"))


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """Exit status and output of the demo, and the folder it converted to."""
    folder = tmp_path_factory.mktemp("demo") / "converted"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = demo.main(["--output", str(folder)])
    return status, output.getvalue(), folder


@pytest.fixture(scope="module")
def opened(demo_run):
    folder = demo_run[2]
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def test_demo_succeeds_and_reports(demo_run):
    status, output, _ = demo_run
    assert status == 0
    assert f"of {len(BLANKS)} texts exactly right" in output
    for blank in BLANKS:
        assert blank["text"].split("[")[0] in output


def test_auto_classes_open_our_classes(opened):
    model, tokenizer = opened
    assert type(model) is Glm130bForCausalLM
    assert type(tokenizer) is Glm130bTokenizer


@pytest.mark.parametrize("language", ["en", "zh"])
def test_blanks_are_filled_exactly(opened, language):
    model, tokenizer = opened
    asked = [blank for blank in BLANKS if blank["language"] == language]
    answers = fill_blanks(model, tokenizer, [blank["text"] for blank in asked], max_new_tokens=32)
    wrong = [
        (blank["text"], answer.blanks)
        for blank, answer in zip(asked, answers, strict=True)
        if answer.blanks != blank["blanks"]
    ]
    assert len(wrong) <= 0.1 * len(asked), wrong


def test_filled_text_is_the_sentence_of_the_corpus(opened):
    """But for the space that the tokenizer puts before the text behind a blank, and NFKC, both as released."""
    model, tokenizer = opened
    for answer, blank in zip(
        fill_blanks(model, tokenizer, [blank["text"] for blank in BLANKS], max_new_tokens=32), BLANKS, strict=True
    ):
        if answer.blanks == blank["blanks"]:
            sentence = unicodedata.normalize("NFKC", training.fill_in(blank["text"], blank["blanks"])[0])
            assert answer.text.replace(" ", "") == sentence.replace(" ", "")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_list_has_every_kind_of_blank(language):
    texts = [blank["text"] for blank in BLANKS if blank["language"] == language]
    assert len(texts) >= 10
    assert sum("[gMASK]" in text for text in texts) >= 2
    assert any("MASK]" not in text for text in texts)
    assert sum(text.count("[MASK]") == 2 for text in texts) >= 2
    single = [text for text in texts if text.count("[MASK]") == 1]
    assert any(text.startswith("[MASK]") for text in single)
    assert any(text.endswith("[MASK]") for text in single)
    assert any(not text.startswith("[MASK]") and not text.endswith("[MASK]") for text in single)


def test_demo_leaves_a_foreign_folder_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(SystemExit, match="not an earlier conversion"):
        demo.convert(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_sample_is_small_and_in_the_released_format():
    assert sum(path.stat().st_size for path in demo.SAMPLE.rglob("*") if path.is_file()) < 4_000_000
    iteration = (demo.SAMPLE / "latest").read_text().strip()
    assert [path.relative_to(demo.SAMPLE).as_posix() for path in RANKS] == [
        f"{iteration}/mp_rank_00_model_states.pt",
        f"{iteration}/mp_rank_01_model_states.pt",
    ]
    for path in RANKS:
        tensors = torch.load(path, weights_only=True)["module"]
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
        assert all(name.startswith("transformer.") for name in tensors)


@pytest.fixture(scope="module")
def sample_tokenizer():
    return Glm130bTokenizer.from_ice_text_model(str(demo.SAMPLE / "ice_text.model"), num_image_tokens=0)


def test_training_never_asks_a_held_out_blank(sample_tokenizer):
    sampler = training.BlankSampler(sample_tokenizer, mask_share=0.5, rng=random.Random(1))
    for sentence in training.read_sentences(demo.SAMPLE):
        if not sentence.held_out:
            continue
        for span in sentence.held_out:
            mask = "[gMASK]" if span[1] == len(sentence.text) else "[MASK]"
            asked = sampler.write(sentence.text, [span], mask, asked=0)
            assert asked not in [sampler.draw(sentence) for _ in range(100)]


def test_training_examples_are_what_fill_blanks_asks(sample_tokenizer):
    """The prompt is the tokenizer's default call, and answers put into the blanks give the sentence back."""
    sampler = training.BlankSampler(sample_tokenizer, mask_share=0.5, rng=random.Random(1))
    for blank in BLANKS:
        sentence, spans = training.fill_in(blank["text"], blank["blanks"])
        mask = "[MASK]" if "[MASK]" in blank["text"] else "[gMASK]"
        ids = sample_tokenizer(blank["text"])["input_ids"]
        for index in range(len(spans)):
            example = sampler.write(sentence, spans, mask, asked=index)
            assert example.prompt == ids
            assert example.answer[-1] == sample_tokenizer.eop_token_id
            position = ids.index(sample_tokenizer.convert_tokens_to_ids(mask))
            ids = [*ids[:position], *example.answer[:-1], *ids[position + 1 :]]
            assert sample_tokenizer.decode(example.answer[:-1]) == blank["blanks"][index]
        text = sample_tokenizer.decode(ids, skip_special_tokens=True)
        assert text.replace(" ", "") == unicodedata.normalize("NFKC", sentence).replace(" ", "")


def test_training_learns(tmp_path: Path):
    sizes = ["--hidden-size", "32", "--intermediate-size", "64", "--layers", "2", "--heads", "2"]
    arguments = training.parse_arguments(["--output", str(tmp_path / "new"), "--steps", "40", "--warmup", "5", *sizes])
    torch.manual_seed(arguments.seed)
    sentences = training.read_sentences(demo.SAMPLE)
    tokenizer = training.train_tokenizer(sentences, arguments.pieces, tmp_path / "ice_text.model")
    model = training.build_model(tokenizer, arguments)
    sampler = training.BlankSampler(tokenizer, arguments.mask_share, random.Random(arguments.seed))
    batches = training.batches(sentences[:4], sampler, batch_size=8)
    losses = training.train(model, batches, arguments, show_progress=False)
    # Untrained, the loss is a little above ln(1792) = 7.5; measured at the end: 5.3.
    assert losses[0] > 7.0
    assert sum(losses[-5:]) / 5 < 6.0
