"""The engines that people serve BERTs with compute what the ERNIE folder does; vLLM on the ERNIE folder does not.

Bounds are 1e-5 in fp32: other kernels, other orders of additions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ErnieConfig,
)

from hf_glm_ernie import ErnieTokenizer, sentence_embeddings
from tests.support.converting_ernie import convert
from tests.support.ernie_vocabulary import SMALL, write_vocabulary
from tests.support.serving import MISSING, engine

BOUND = 1e-5
TEXTS = ["今天天气真好，我们去公园玩吧。", "价格是$100元 25℃", "好", "hello world 25×4 " * 20]
CONTEXT = 64
Made = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An ERNIE folder of random weights, with heads of 32, which CPU kernels have; and the BERT it becomes."""
    root = tmp_path_factory.mktemp("engines")
    folders: dict[tuple[Any, ...], tuple[Path, Path]] = {}

    def make(auto: Any, *options: str) -> tuple[Path, Path]:
        key = auto, *options
        if key not in folders:
            ernie, bert = root / f"ernie_{len(folders)}", root / f"bert_{len(folders)}"
            tokenizer = ErnieTokenizer(write_vocabulary(root, SMALL["vocabulary"]), model_max_length=CONTEXT)
            sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 96}
            config = ErnieConfig(
                vocab_size=max(tokenizer.get_vocab().values()) + 1,
                max_position_embeddings=CONTEXT,
                type_vocab_size=4,
                use_task_id=True,
                task_type_vocab_size=5,
                num_labels=3,
                initializer_range=0.3,
                **sizes,
            )
            torch.manual_seed(0)
            model = auto.from_config(config)
            model.save_pretrained(ernie)
            tokenizer.save_pretrained(ernie)
            assert convert(ernie, bert, "--as-bert", *options) == 0
            folders[key] = ernie, bert
        return folders[key]

    return make


def outputs(auto: Any, ernie: Path) -> list[Any]:
    """Of every text, computed with the ERNIE folder alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(ernie), auto.from_pretrained(ernie).eval()
    rows = (tokenizer(text, truncation=True, max_length=CONTEXT, return_tensors="pt") for text in TEXTS)
    with torch.no_grad():
        return [model(**row) for row in rows]


def embeddings(ernie: Path, pooling: str, normalize: bool) -> torch.Tensor:
    tokenizer, model = AutoTokenizer.from_pretrained(ernie), AutoModel.from_pretrained(ernie)
    return sentence_embeddings(model, tokenizer, TEXTS, pooling=pooling, normalize=normalize)


def largest(found: Any, expected: Any) -> float:
    pairs = zip(found, expected, strict=True)
    return max((torch.as_tensor(np.asarray(one)) - other).abs().max().item() for one, other in pairs)


POOLINGS = [
    ("mean", "--normalize"),
    *((pooling, "--no-normalize") for pooling in ("mean", "max", "mean_sqrt", "cls")),
]


@pytest.mark.parametrize(("pooling", "normalize"), POOLINGS)
def test_sentence_transformers(made: Made, pooling: str, normalize: str) -> None:
    """Seen: 2.4e-6 of vectors that are not scaled, 6.2e-6 of `mean_sqrt`, whose values reach 19.

    Texts are cut where `sentence_embeddings` cuts them.
    """
    reason = "needs sentence-transformers: the environment of `make test-serve` has it"
    engines = pytest.importorskip("sentence_transformers", reason=reason)
    ernie, bert = made(AutoModel, f"--pooling={pooling}", normalize)
    model = engines.SentenceTransformer(str(bert), device="cpu")
    assert model.max_seq_length == CONTEXT
    assert largest(model.encode(TEXTS), embeddings(ernie, pooling, normalize == "--normalize")) <= BOUND


def test_sentence_transformers_without_being_told(made: Made) -> None:
    """The two lines of docs/convert.md, and the mean that is taken without them."""
    reason = "needs sentence-transformers: the environment of `make test-serve` has it"
    engines = pytest.importorskip("sentence_transformers", reason=reason)
    from sentence_transformers import models

    ernie, bert = made(AutoModel)
    words = models.Transformer(str(bert))
    model = engines.SentenceTransformer(modules=[words, models.Pooling(64, pooling_mode="cls")], device="cpu")
    assert largest(model.encode(TEXTS), embeddings(ernie, "cls", False)) <= BOUND
    plainly = engines.SentenceTransformer(str(bert), device="cpu")
    assert largest(plainly.encode(TEXTS), embeddings(ernie, "mean", False)) <= BOUND


def test_ctranslate2(made: Made, tmp_path: Path) -> None:
    """States of every token and the pooler; seen: 5.2e-6 of states up to 4."""
    reason = "needs ctranslate2 (pip install ctranslate2)"
    engines = pytest.importorskip("ctranslate2", reason=reason)
    from ctranslate2.converters import TransformersConverter

    ernie, bert = made(AutoModel)
    TransformersConverter(str(bert)).convert(str(tmp_path / "ctranslate2"))
    encoder = engines.Encoder(str(tmp_path / "ctranslate2"), device="cpu", compute_type="float32")
    tokenizer = AutoTokenizer.from_pretrained(bert)
    rows = [encoder.forward_batch([tokenizer(text, truncation=True)["input_ids"]]) for text in TEXTS]
    expected = outputs(AutoModel, ernie)
    assert (
        largest([np.array(row.last_hidden_state) for row in rows], [one.last_hidden_state for one in expected])
        <= BOUND
    )
    assert largest([np.array(row.pooler_output) for row in rows], [one.pooler_output for one in expected]) <= BOUND


def ids(bert: Path) -> list[dict[str, list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    return [{"prompt_token_ids": tokenizer(text, truncation=True)["input_ids"]} for text in TEXTS]


def test_vllm_embeds(made: Made) -> None:
    """With the pooling that the folder says, and by text and by ids; seen: 2e-7."""
    pytest.importorskip("vllm", reason=MISSING)
    ernie, bert = made(AutoModel, "--pooling=mean", "--normalize")
    expected = embeddings(ernie, "mean", True)
    with engine(bert, runner="pooling") as served:
        assert largest([one.outputs.embedding for one in served.embed(ids(bert))], expected) <= BOUND
        assert largest([one.outputs.embedding for one in served.embed(TEXTS[:3])], expected[:3]) <= BOUND


def test_vllm_classifies(made: Made) -> None:
    """Seen: 4.5e-7."""
    pytest.importorskip("vllm", reason=MISSING)
    auto = AutoModelForSequenceClassification
    ernie, bert = made(auto)
    expected = [one.logits.softmax(-1)[0] for one in outputs(auto, ernie)]
    with engine(bert, runner="pooling") as served:
        assert largest([one.outputs.probs for one in served.classify(ids(bert))], expected) <= BOUND


@pytest.mark.parametrize("auto", [AutoModelForTokenClassification, AutoModelForMaskedLM], ids=lambda one: one.__name__)
def test_vllm_classifies_tokens(made: Made, auto: Any) -> None:
    """Labels, or words; seen: 6.4e-7."""
    pytest.importorskip("vllm", reason=MISSING)
    ernie, bert = made(auto)
    expected = [one.logits[0].softmax(-1) for one in outputs(auto, ernie)]
    with engine(bert, runner="pooling") as served:
        found = [one.outputs.data for one in served.encode(ids(bert), pooling_task="token_classify")]
        assert largest(found, expected) <= BOUND


def test_control_vllm_is_wrong_on_the_ernie_folder(made: Made) -> None:
    """Its generic class passes ERNIE's pooler over. The day this fails, docs/convert.md may say so."""
    pytest.importorskip("vllm", reason=MISSING)
    auto = AutoModelForSequenceClassification
    ernie, _ = made(auto)
    expected = [one.logits.softmax(-1)[0] for one in outputs(auto, ernie)]
    with engine(ernie, runner="pooling") as served:
        found = [one.outputs.data.flatten() for one in served.encode(ids(ernie), pooling_task="classify")]
        assert largest(found, expected) > 0.1
