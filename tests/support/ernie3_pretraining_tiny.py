"""A tiny model and data of every task for the tests of ERNIE 3.0's pre-training."""

from typing import Any

import torch

from hf_glm_ernie.configuration_ernie3 import DOCUMENT_LM, KNOWLEDGE_MASKED_LM, Ernie3Config
from hf_glm_ernie.ernie3_training.control import ControllableLM
from hf_glm_ernie.ernie3_training.credible import CredibleRows
from hf_glm_ernie.ernie3_training.knowledge import KnowledgeTextPrediction
from hf_glm_ernie.ernie3_training.masking import KnowledgeMasking
from hf_glm_ernie.ernie3_training.mixture import Ernie3PretrainingMixture
from hf_glm_ernie.ernie3_training.structure import SentenceDistance, SentenceReordering
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining

PARAGRAPHS = [
    ["今天天气真好。", "我们去公园玩吧。", "百度是一个平台。", "北京市的大桥。", "hello world。"],
    ["深学习是开源的。", "长江是大江。", "价格一百元。", "我们真好。"],
    ["公园的大桥。", "北京今天天气好。", "飞桨是平台！"],
    ["玩吧？", "去北京。", "一个元。", "我们去大江玩。"],
]
FACTS = [
    {"head": "北京", "relation": "是", "tail": "公园", "sentence": "北京的公园真好。"},
    {"head": "百度", "relation": "的", "tail": "平台", "sentence": "飞桨是百度的平台。"},
    {"head": "长江", "relation": "的大桥", "tail": "大江", "sentence": "长江是一个大江。"},
    {"head": "我们", "relation": "玩", "tail": "北京", "sentence": "今天我们去北京。"},
]


def tiny_model(tokenizer: Any, **settings: Any) -> Ernie3ForPreTraining:
    """All heads, a memory of 6 tokens, no dropout."""
    torch.manual_seed(11)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "branch_hidden_size": 24,
        "branch_num_hidden_layers": 1,
        "branch_num_attention_heads": 2,
        "branch_intermediate_size": 32,
        "max_position_embeddings": 256,
        "memory_length": 6,
        "num_credible_labels": 2,
        "num_soft_prompt_genres": 11,
        "soft_prompt_token_id": tokenizer.convert_tokens_to_ids("[soft]"),
        "eos_token_id": tokenizer.eos_token_id,
        "sentence_token_id": tokenizer.sentence_token_id,
        "initializer_range": 0.1,
    }
    return Ernie3ForPreTraining(Ernie3Config(**(sizes | settings)))


def every_task(tokenizer: Any, **options: Any) -> list[tuple[list[dict[str, Any]], Any]]:
    """(rows, builder) of every task but document language modelling."""
    options = {"max_length": 96, "truncation": True} | options
    texts = ["".join(paragraph) for paragraph in PARAGRAPHS]
    return [
        ([{"text": text} for text in texts], KnowledgeMasking(tokenizer, **options)),
        ([{"sentences": one} for one in PARAGRAPHS], SentenceReordering(tokenizer, **options)),
        ([{"sentences": one} for one in PARAGRAPHS], SentenceDistance(tokenizer, documents=PARAGRAPHS, **options)),
        (FACTS, KnowledgeTextPrediction(tokenizer, **options)),
        (
            [{"text": text, "credible_labels": at % 2} for at, text in enumerate(texts)],
            CredibleRows(tokenizer, **options),
        ),
        ([{"text": text, "genre": "Web", "topic": "公园"} for text in texts], ControllableLM(tokenizer, **options)),
    ]


def documents() -> list[dict[str, Any]]:
    """Texts of several segments."""
    return [{"text": "".join(PARAGRAPHS[(at + step) % 4][0] for step in range(2 + at))} for at in range(6)]


def mixture(tokenizer: Any, **options: Any) -> Ernie3PretrainingMixture:
    """Batches of 12 rows of all seven tasks, four of documents and three of masked texts among them."""
    settings: dict[str, Any] = {"batch_size": 12, "length": 16, "ratios": {DOCUMENT_LM: 4, KNOWLEDGE_MASKED_LM: 3}}
    return Ernie3PretrainingMixture(tokenizer, every_task(tokenizer), documents(), **(settings | options))
