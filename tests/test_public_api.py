"""The names people import, and that importing registers them; a change here is a change for users (CHANGELOG)."""

import subprocess
import sys

import pytest
import transformers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

import hf_glm_ernie


def test_public_names() -> None:
    assert set(hf_glm_ernie.__all__) == {
        "GENRES",
        "SENTIMENTS",
        "AdapterArguments",
        "AdversarialTexts",
        "BlankInfilling",
        "ControllableLM",
        "CredibleRows",
        "DistantSupervision",
        "DocumentStreams",
        "DocumentTokens",
        "Ernie3CausalLMOutput",
        "Ernie3Config",
        "Ernie3DistillationTrainer",
        "Ernie3ForCausalLM",
        "Ernie3ForMaskedLM",
        "Ernie3ForMultipleChoice",
        "Ernie3ForPreTraining",
        "Ernie3ForPreTrainingOutput",
        "Ernie3ForQuestionAnswering",
        "Ernie3ForSequenceClassification",
        "Ernie3ForTokenClassification",
        "Ernie3Memories",
        "Ernie3Model",
        "Ernie3ModelOutput",
        "Ernie3PreTrainedModel",
        "Ernie3PretrainingCollator",
        "Ernie3PretrainingMixture",
        "Ernie3PretrainingTrainer",
        "Ernie3Tokenizer",
        "ErnieForUIE",
        "ErnieForUTC",
        "ErnieTokenizer",
        "ErnieUIEConfig",
        "ErnieUIEOutput",
        "ErnieUTCConfig",
        "ErnieUTCOutput",
        "FilledText",
        "Glm130bCollator",
        "Glm130bConfig",
        "Glm130bForCausalLM",
        "Glm130bModel",
        "Glm130bPreTrainedModel",
        "Glm130bTextGenerationPipeline",
        "Glm130bTokenizer",
        "InstructionPairs",
        "KnowledgeMasking",
        "KnowledgeTextPrediction",
        "Lexicon",
        "MemoryBank",
        "ModelContinuations",
        "OnlineDistillation",
        "Packing",
        "ProgressiveSchedule",
        "RankedText",
        "SentenceDistance",
        "SentenceReordering",
        "WeightOnlyConfig",
        "ZeroShotAnswer",
        "adapt",
        "add_auxiliary_layer",
        "build_control_prompt",
        "cond_log_probs",
        "drop_auxiliary_layer",
        "evaluate_task",
        "fill_blanks",
        "generate_answers",
        "label_permutation",
        "layerwise_lr_groups",
        "lm_loss",
        "load_adapter",
        "merging_into_integers",
        "mix_instructions",
        "one_chat_an_answer",
        "pair_scores",
        "permutation_classes",
        "permutation_label",
        "published_arguments",
        "register_default_targets",
        "rerank",
        "sentence_embeddings",
        "sentences_with",
        "split_sentences",
        "uie",
        "utc",
        "zero_shot",
    }
    assert all(hasattr(hf_glm_ernie, name) for name in hf_glm_ernie.__all__)


def test_registered_with_the_auto_classes() -> None:
    config = transformers.AutoConfig.for_model("glm130b")
    assert type(config) is hf_glm_ernie.Glm130bConfig
    assert transformers.AutoModel._model_mapping[type(config)] is hf_glm_ernie.Glm130bModel
    assert transformers.AutoModelForCausalLM._model_mapping[type(config)] is hf_glm_ernie.Glm130bForCausalLM
    assert TOKENIZER_MAPPING[type(config)] is hf_glm_ernie.Glm130bTokenizer


def test_ernie_heads_are_registered_and_the_hosts_own_choices_stay() -> None:
    for model_type, model in (("ernie_uie", hf_glm_ernie.ErnieForUIE), ("ernie_utc", hf_glm_ernie.ErnieForUTC)):
        config = transformers.AutoConfig.for_model(model_type)
        assert transformers.AutoModel._model_mapping[type(config)] is model
        assert TOKENIZER_MAPPING[type(config)] is hf_glm_ernie.ErnieTokenizer
    assert transformers.AutoModel._model_mapping[transformers.ErnieConfig] is transformers.ErnieModel
    assert TOKENIZER_MAPPING[transformers.ErnieConfig].__name__.startswith("BertTokenizer")


def test_the_unified_framework_is_registered_with_every_head() -> None:
    config = transformers.AutoConfig.for_model("ernie3")
    assert type(config) is hf_glm_ernie.Ernie3Config
    assert transformers.AutoModel._model_mapping[type(config)] is hf_glm_ernie.Ernie3Model
    for task in (
        *("PreTraining", "CausalLM", "MaskedLM", "SequenceClassification", "TokenClassification"),
        *("QuestionAnswering", "MultipleChoice"),
    ):
        auto = getattr(transformers, f"AutoModelFor{task}")
        assert auto._model_mapping[type(config)] is getattr(hf_glm_ernie, f"Ernie3For{task}")
    assert TOKENIZER_MAPPING[type(config)] is hf_glm_ernie.Ernie3Tokenizer


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        hf_glm_ernie.nothing  # noqa: B018


def test_importing_twice_is_harmless_and_leaves_converters_out() -> None:
    code = (
        "import sys, importlib, hf_glm_ernie; importlib.reload(hf_glm_ernie); "
        "print([m for m in sys.modules if m.startswith(('hf_glm_ernie.conversion', 'peft', 'datasets'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
