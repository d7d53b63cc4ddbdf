"""pipeline("text-generation"): the full text is prompt and answer as one text; other models get the host's class."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TextGenerationPipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_glm_ernie import Glm130bTextGenerationPipeline
from hf_glm_ernie.inference.pipeline import TASK, full_text, register_pipeline
from tests.support.finetuning import converted_sample


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pipeline(TASK, model=str(converted_sample(tmp_path_factory.mktemp("sample") / "glm")), device="cpu")


TEXTS = {
    "Thunder is the sound": "Thunder is the sound that follows a flash of lightning.",
    "Thunder is the sound ": "Thunder is the sound that follows a flash of lightning.",
    "Thunder is the sound [gMASK]": "Thunder is the sound that follows a flash of lightning.",
    "Thunder is the sound[gMASK]": "Thunder is the sound that follows a flash of lightning.",
    "邮局门口挂着": "邮局门口挂着一盏蓝色的灯笼。",
    "An octopus has [MASK] and blue blood.": "An octopus has three hearts and blue blood.",
    "纸是[MASK]在两千年前发明的。": "纸是中国人在两千年前发明的。",
}


@pytest.mark.parametrize("prompt", TEXTS)
def test_full_texts(writer, prompt: str) -> None:
    assert isinstance(writer, Glm130bTextGenerationPipeline)
    assert writer(prompt)[0]["generated_text"] == TEXTS[prompt]
    ids = writer(prompt, return_tensors=True)[0]["generated_token_ids"]
    if "[MASK]" not in prompt:  # there the row has the answer at its end
        assert writer.tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[prompt]


def test_batches_and_candidates(writer) -> None:
    prompts = list(TEXTS)
    batch = writer(prompts, batch_size=3)
    assert [rows[0]["generated_text"] for rows in batch] == list(TEXTS.values())
    candidates = writer(prompts[0], num_beams=2, num_return_sequences=2)
    assert all(row["generated_text"].startswith("Thunder is the sound that") for row in candidates)
    assert len({row["generated_text"] for row in candidates}) == 2


def test_what_is_the_host_s(writer) -> None:
    assert writer("Thunder is the sound", return_full_text=False) == [
        {"generated_text": "that follows a flash of lightning."}
    ]


def test_chats(writer) -> None:
    asked = {"role": "user", "content": "Thunder is the sound"}
    answer = {"role": "assistant", "content": "that follows a flash of lightning."}
    assert writer([asked])[0]["generated_text"] == [asked, answer]
    begun = {"role": "assistant", "content": "that follows"}
    assert writer([asked, begun])[0]["generated_text"] == [asked, answer]


@pytest.mark.parametrize(
    ("prompt", "answer", "written", "text"),
    [
        ("the sound", " that follows", True, "the sound that follows"),
        ("the sound\n", " that follows", True, "the sound\nthat follows"),
        ("雷是", "声音", True, "雷是声音"),
        ("a [MASK] c", " b", True, "a b c"),
        ("a[MASK]c", " b", True, "a bc"),
        ("[sMASK] c", " b", True, "b c"),
        ("a [MASK] c", " b", False, "a [MASK] c b"),  # a row without <sop> goes on at its end
        ("", " b", True, "b"),
    ],
)
def test_full_text(prompt: str, answer: str, written: bool, text: str) -> None:
    assert full_text(prompt, answer, written) == text


def test_other_models_get_the_host_s_class(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, n_positions=32))
    other = pipeline(TASK, model=model, tokenizer=tokenizer, device="cpu")
    assert type(other) is TextGenerationPipeline
    expected = TextGenerationPipeline(model=model, tokenizer=tokenizer, device=torch.device("cpu"))
    settings: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    assert other("a b", **settings) == expected("a b", **settings)
    other.save_pretrained(tmp_path)
    assert not getattr(GPT2Config.from_pretrained(tmp_path), "custom_pipelines", None)


def test_a_class_that_somebody_registered_stays(monkeypatch) -> None:
    task = PIPELINE_REGISTRY.supported_tasks[TASK]
    assert task["impl"] is Glm130bTextGenerationPipeline
    monkeypatch.setitem(task, "impl", dict)
    register_pipeline()
    assert task["impl"] is dict
    for host in (TextGenerationPipeline, "transformers.pipelines.text_generation.TextGenerationPipeline"):
        monkeypatch.setitem(task, "impl", host)
        register_pipeline()
        assert task["impl"] is Glm130bTextGenerationPipeline
