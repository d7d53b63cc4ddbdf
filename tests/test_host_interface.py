"""What is ours on every version of the host: both names of a cache, nothing swallowed, one warning of an untested
host.
"""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, ErnieConfig, GenerationConfig

from hf_glm_ernie import (
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForMultipleChoice,
    Ernie3ForPreTraining,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
    Ernie3Model,
    ErnieForGPLinker,
    ErnieForUIE,
    ErnieForUTC,
    ErnieGPLinkerConfig,
    ErnieUIEConfig,
    ErnieUTCConfig,
    Glm130bTokenizer,
)
from hf_glm_ernie.host_interface import CACHE_NAME, generation_setting, given_cache, returned_cache
from hf_glm_ernie.host_versions import NEWEST_TESTED, OLDEST_TESTED
from tests.support import tiny_ernie3
from tests.support.strangers import PREAMBLE, run_python
from tests.support.tiny import write_ice_text_model
from tests.support.tiny_models import MASK, SOP, tiny_model

ROOT = Path(__file__).parents[1]
NAMES = ("cache", "past_key_values")
PROMPT = torch.tensor([[5, 6, MASK, 7, SOP]])


def tiny_encoder(config_class: type[ErnieConfig], model_class: type[Any]) -> Any:
    size = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return model_class(config_class(**size, intermediate_size=16, max_position_embeddings=32)).eval()


ERNIE3 = (
    *(Ernie3Model, Ernie3ForCausalLM, Ernie3ForMaskedLM, Ernie3ForPreTraining, Ernie3ForSequenceClassification),
    *(Ernie3ForTokenClassification, Ernie3ForQuestionAnswering),
)
MODELS: dict[str, Callable[[], Any]] = {
    "Glm130bModel": lambda: tiny_model().model,
    "Glm130bForCausalLM": tiny_model,
    "ErnieForGPLinker": lambda: tiny_encoder(ErnieGPLinkerConfig, ErnieForGPLinker),
    "ErnieForUIE": lambda: tiny_encoder(ErnieUIEConfig, ErnieForUIE),
    **{cls.__name__: lambda cls=cls: cls(tiny_ernie3.tiny_config()).eval() for cls in ERNIE3},
}


def unread(model: Any, **arguments: Any) -> None:
    model(input_ids=torch.tensor([[5, 6, 7]]), **arguments)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "argument", ["past_key_value", "encoder_attention_mask", "cache_position", "positions", "is_causal", "seq_idx"]
)
def test_a_forward_swallows_nothing(name: str, argument: str) -> None:
    """Every forward, and what the host's own forwards drop: a mask, a cache or positions under another name."""
    with pytest.raises(TypeError, match=f"unexpected argument '{argument}'"):
        unread(MODELS[name](), **{argument: torch.tensor([[0, 1, 1]])})
    unread(MODELS[name](), **{argument: None})  # says nothing


def test_two_more_forwards_swallow_nothing() -> None:
    choices = torch.tensor([[[5, 6, 7], [8, 9, 7]]])
    with pytest.raises(TypeError, match="unexpected argument 'positions'"):
        Ernie3ForMultipleChoice(tiny_ernie3.tiny_config())(choices, positions=choices)
    utc = tiny_encoder(ErnieUTCConfig, ErnieForUTC)
    places = {"omask_positions": torch.tensor([[1]]), "cls_positions": torch.tensor([0])}
    with pytest.raises(TypeError, match="unexpected argument 'positions'"):
        utc(choices[:, 0], positions=choices, **places)


def test_an_attention_of_the_users_own_gets_what_it_takes() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    seen = []

    def attention(*args: Any, temperature: float | None = None, **kwargs: Any) -> Any:
        seen.append(temperature)
        return sdpa_attention_forward(*args, **kwargs)

    AttentionInterface.register("tests_tempered", attention)
    AttentionMaskInterface.register("tests_tempered", sdpa_mask)
    model = tiny_model()
    model.set_attn_implementation("tests_tempered")
    model(PROMPT, temperature=0.5)
    assert seen == [0.5] * model.config.num_hidden_layers


@pytest.mark.parametrize("given", NAMES)
def test_a_forward_takes_the_cache_under_either_name(given: str) -> None:
    """The step on a cache is the whole forward, whatever the cache is called; the output calls it as the host does."""
    model = tiny_model()
    ids = torch.cat((PROMPT, torch.tensor([[9, 11]])), dim=1)
    whole = model(ids).logits[:, -1]
    filled = model(ids[:, :-1], **{given: DynamicCache()})
    assert CACHE_NAME in filled
    assert ({*NAMES} - {CACHE_NAME}).isdisjoint(filled.keys())
    step = model(ids[:, -1:], **{given: returned_cache(filled)}).logits[:, -1]
    torch.testing.assert_close(step, whole, rtol=0, atol=2e-5)  # fp32 over three layers; seen 4e-6
    alone = model(ids[:, -1:]).logits[:, -1]
    assert (alone - whole).abs().max() > 0.1  # so a dropped cache would be seen


@pytest.mark.parametrize("given", NAMES)
def test_ernie3_takes_the_cache_under_either_name(given: str) -> None:
    model = tiny_ernie3.tiny_model(Ernie3ForCausalLM)
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = model(ids).logits[:, -1]
    filled = model(ids[:, :-1], **{given: DynamicCache()})
    assert CACHE_NAME in filled
    step = model(ids[:, -1:], **{given: returned_cache(filled)}).logits[:, -1]
    torch.testing.assert_close(step, whole, rtol=0, atol=1e-5)  # fp32 over five layers; seen 2e-6


@pytest.mark.parametrize("given", NAMES)
@pytest.mark.parametrize("family", ["glm130b", "ernie3"])
def test_generate_takes_the_cache_under_either_name(given: str, family: str) -> None:
    model = tiny_model() if family == "glm130b" else tiny_ernie3.tiny_model(Ernie3ForCausalLM)
    prompt = PROMPT if family == "glm130b" else torch.tensor([[5, 6, 7, 8]])
    cache = DynamicCache()
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    plain = model.generate(prompt, use_cache=False, **settings)
    output = model.generate(prompt, **settings, **{given: cache})
    assert output.sequences.tolist() == plain.sequences.tolist()
    assert returned_cache(output) is cache
    assert cache.get_seq_length() == output.sequences.shape[1] - 1


def test_two_caches_are_one_too_many() -> None:
    one, other = DynamicCache(), DynamicCache()
    assert given_cache(one, one) is one
    with pytest.raises(ValueError, match="two names of one argument"):
        tiny_model()(PROMPT, cache=one, past_key_values=other)
    with pytest.raises(ValueError, match="two names of one argument"):
        tiny_model().generate(PROMPT, cache=one, past_key_values=other)


def test_the_versions_tested_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floor = next(line for line in project["dependencies"] if line.startswith("transformers"))
    assert OLDEST_TESTED.startswith(re.findall(r">=([\d.]+)", floor)[0])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"transformers=={NEWEST_TESTED}" in pins
    assert f"transformers=={OLDEST_TESTED}" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("version", "warnings"), [("5.16.1", 1), ("5.17.0", 0), ("5.24.9", 0), ("5.25.0.dev0", 1), ("6.1.0", 1)]
)
def test_an_untested_host_is_named_once_at_import(tmp_path: Path, version: str, warnings: int) -> None:
    program = f"import transformers; transformers.__version__ = {version!r}; import hf_glm_ernie"
    error = run_python(program, tmp_path).stderr
    assert error.count("hf_glm_ernie was tested with transformers") == warnings
    if warnings:
        assert f"{OLDEST_TESTED} to {NEWEST_TESTED}, and this is {version}" in error


@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoTokenizer"])
def test_copies_on_the_hub_warn_too(tmp_path: Path, auto: str) -> None:
    """A Hub copy carries no pin of the host. Two of them, opened in a process without the package, are one warning."""
    tokenizer = Glm130bTokenizer(write_ice_text_model(tmp_path / "ice_text.model"))
    places = [str(tmp_path / name) for name in ("one", "two")]
    for place in places:
        tiny_model().save_pretrained(place)
        tokenizer.save_pretrained(place)
        versions = Path(place) / "host_versions.py"  # as if it had been published for an older host
        versions.write_text(versions.read_text("utf-8").replace(f'"{NEWEST_TESTED}"', '"5.16.0"'), "utf-8")
    loop = f"for place in {places}: transformers.{auto}.from_pretrained(place, trust_remote_code=True)"
    error = run_python(f"{PREAMBLE}import transformers\n{loop}", tmp_path).stderr
    assert error.count("hf_glm_ernie was tested with transformers") == 1


def test_a_setting_of_generate_is_read_in_the_host_s_order() -> None:
    call, given, own = (GenerationConfig(num_beams=number) for number in (5, 3, 2))
    assert generation_setting("num_beams", {"num_beams": call.num_beams}, given, own) == 5
    assert generation_setting("num_beams", {"num_beams": None}, given, own) == 3
    assert generation_setting("num_beams", {}, None, own) == 2
    assert generation_setting("prefill_chunk_size", {}, given, own) is None
