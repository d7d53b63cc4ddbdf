"""The names people import, and that importing registers them; a change here is a change for users (CHANGELOG)."""

import subprocess
import sys

import transformers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

import hf_glm_ernie


def test_public_names() -> None:
    assert set(hf_glm_ernie.__all__) == {
        "ErnieForUIE",
        "ErnieForUTC",
        "ErnieTokenizer",
        "ErnieUIEConfig",
        "ErnieUIEOutput",
        "ErnieUTCConfig",
        "ErnieUTCOutput",
        "FilledText",
        "Glm130bConfig",
        "Glm130bForCausalLM",
        "Glm130bModel",
        "Glm130bPreTrainedModel",
        "Glm130bTokenizer",
        "WeightOnlyConfig",
        "fill_blanks",
        "sentence_embeddings",
        "uie",
        "utc",
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


def test_importing_twice_is_harmless_and_leaves_converters_out() -> None:
    code = (
        "import sys, importlib, hf_glm_ernie; importlib.reload(hf_glm_ernie); "
        "print([m for m in sys.modules if m.startswith(('hf_glm_ernie.conversion', 'peft', 'datasets'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
