"""Adapters through PEFT: default targets, merging into integers, opening with checks, and tokens in front of a text.

Prompt and prefix tuning are held against masks and positions that are spelled out token by token.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    ErnieConfig,
    ErnieForSequenceClassification,
    ErnieForTokenClassification,
)

from hf_glm_ernie import ErnieForUIE, ErnieForUTC, ErnieUIEConfig, ErnieUTCConfig
from hf_glm_ernie.finetuning.methods import AdapterArguments, adapt
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig, repack
from hf_glm_ernie.weight_only import dequantize, from_storage, quantize
from tests.support.fresh import fresh_python
from tests.support.tiny_models import EOP, EOS, GMASK, LAYERS, MASK, PAD, SMASK, SOP, tiny_model

peft = pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")

from hf_glm_ernie.finetuning.weight_only import load_adapter, merging_into_integers  # noqa: E402  # needs peft

ROOT = Path(__file__).parents[1]
IDS = torch.tensor([[9, 8, MASK, 7, 6, SOP, 11, 12]])


def logits(model: Any, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**({"input_ids": IDS} | arguments)).logits


def randomize(model: nn.Module, std: float = 0.05, seed: int = 1) -> None:
    """Adapters begin at zero; these do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "prompt_encoder" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)


def tiny_ernie(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    if kind == "uie":
        return ErnieForUIE(ErnieUIEConfig(**sizes))
    if kind == "utc":
        return ErnieForUTC(ErnieUTCConfig(**sizes))
    if kind == "tags":
        return ErnieForTokenClassification(ErnieConfig(**sizes))
    return ErnieForSequenceClassification(ErnieConfig(**sizes))


# Default targets.


@pytest.mark.parametrize("kind", ["glm", "uie", "utc", "native"])
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_default_targets(kind: str, method: str) -> None:
    model = tiny_model() if kind == "glm" else tiny_ernie(kind)
    task = "CAUSAL_LM" if kind == "glm" else None
    adapted = peft.get_peft_model(model, {"lora": peft.LoraConfig, "ia3": peft.IA3Config}[method](task_type=task))
    found = {name.split(".")[-1] for name, m in adapted.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    if method == "lora":
        assert found == ({"q_proj", "v_proj"} if kind == "glm" else {"query", "value"})
    else:
        taken = {n.split(".ia3_l")[0].rpartition(".")[2] for n, _ in adapted.named_parameters() if "ia3_l" in n}
        assert taken == ({"k_proj", "v_proj", "down_proj"} if kind == "glm" else {"key", "value", "dense"})


TARGETS = """
import sys
{imports}
from transformers import ErnieConfig, ErnieForSequenceClassification
from torch.nn.modules import module
waits = sum("add_when_adapted" in hook.__name__ for hook in module._global_module_registration_hooks.values())
before, had = waits, "peft" in sys.modules
import peft
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=8)
adapted = peft.get_peft_model(ErnieForSequenceClassification(ErnieConfig(**sizes)), peft.LoraConfig())
names = sorted({{n.split(".lora_")[0].rpartition(".")[2] for n, _ in adapted.named_parameters() if ".lora_" in n}})
from peft.tuners.lora import LoraModel
mapping = LoraModel.target_module_mapping
print(had, before, names, mapping["glm130b"], mapping["ernie_uie"], mapping["ernie3"])
"""


@pytest.mark.parametrize("order", ["import hf_glm_ernie", "import peft, hf_glm_ernie"])
def test_targets_are_there_in_either_order_and_peft_is_not_imported(order: str) -> None:
    """Also for the host's own classes, which we see nothing of; what waits for PEFT is not there if PEFT was."""
    code = TARGETS.format(imports=order)
    done = fresh_python(["-c", code], ROOT, check=True)
    first = "peft" in order
    expected = (
        f"{first} {int(not first)} ['query', 'value'] ['q_proj', 'v_proj'] ['query', 'value'] ['q_proj', 'v_proj']"
    )
    assert done.stdout.strip() == expected


# Merging into integers.


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "glm"
    tiny_model().save_pretrained(folder)
    return folder


def quantized(folder: Path, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=WeightOnlyConfig(**settings)).eval()


def with_lora(model: Any, name: str = "default", told: bool = True, **settings: Any) -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], **settings)
    if told:
        merging_into_integers(config, model.get_base_model() if isinstance(model, peft.PeftModel) else model)
    if isinstance(model, peft.PeftModel):
        model.add_adapter(name, config)
        return model
    return peft.get_peft_model(model, config).eval()


def lora_layers(model: Any) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}


def integers(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name and ("_proj" in name or name.endswith("_scale"))
    }


@pytest.mark.parametrize(
    "settings", [{"bits": 8}, {"bits": 4}, {"bits": 4, "group_size": 16}, {"bits": 8, "num_groups": {"down_proj": 3}}]
)
@pytest.mark.parametrize("told", [True, False])
def test_merging_is_dequantize_add_quantize_and_unmerging_gives_every_bit_back(plain_folder, settings, told) -> None:
    model = with_lora(quantized(plain_folder, **settings), told=told, lora_bias=True)
    randomize(model)
    before, outputs = integers(model), logits(model)
    with model.disable_adapter():
        base_outputs = logits(model)
    model.merge_adapter()
    assert len(lora_layers(model)) == 2 * LAYERS
    for name, layer in lora_layers(model).items():
        old = before[f"{name}.base_layer.weight"], before[f"{name}.base_layer.weight_scale"]
        wanted = dequantize(from_storage(old[0], settings["bits"]), old[1]) + layer.get_delta_weight("default")
        q, scale = quantize(wanted, settings["bits"], old[1].shape[1])
        base = layer.base_layer
        assert torch.equal(from_storage(base.weight, settings["bits"]), q)
        assert torch.equal(base.weight_scale, scale)
        steps = scale.float().repeat_interleave(wanted.shape[1] // scale.shape[1], dim=1)
        # Half a step, and what rounding the product with an integer of 7 or 127 to fp16 adds.
        largest = 2 ** (settings["bits"] - 1) - 1
        assert ((base.dequantized_weight() - wanted).abs() <= (0.501 + largest / 2048) * steps).all()
        assert torch.equal(base.bias, before[f"{name}.base_layer.bias"] + layer.lora_B["default"].bias * 2)
        assert not torch.equal(base.weight, old[0])
    merged = logits(model)
    # Of what this adapter does to the logits, rounding anew loses 1.5% at 8 bits and 15 to 17% at 4.
    lost = (merged - outputs).norm() / (outputs - base_outputs).norm()
    assert 0 < lost < (0.03 if settings["bits"] == 8 else 0.3)
    model.unmerge_adapter()
    after = integers(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits(model), outputs)


def test_two_adapters_merge_in_any_order_to_the_same(plain_folder) -> None:
    results = []
    for order in (["default", "second"], ["second", "default"], [["default", "second"]]):
        model = with_lora(with_lora(quantized(plain_folder, bits=4)), "second")
        randomize(model)
        before = integers(model)
        for names in order:
            model.merge_adapter([names] if isinstance(names, str) else names)
        merged = integers(model)
        model.merge_adapter(["default"])  # merged already: nothing happens
        assert all(torch.equal(merged[name], tensor) for name, tensor in integers(model).items())
        model.unmerge_adapter()
        assert all(torch.equal(before[name], tensor) for name, tensor in integers(model).items())
        results.append(merged)
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


def test_a_merged_model_is_saved_and_opened_as_any_quantized_one(plain_folder, tmp_path: Path) -> None:
    model = with_lora(quantized(plain_folder, bits=8))
    randomize(model)
    merged = model.merge_and_unload()
    assert not lora_layers(merged)
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(merged))


def test_merging_repacked_weights(plain_folder) -> None:
    results = []
    for repacked in (True, False):
        config = WeightOnlyConfig(bits=4)
        base = AutoModelForCausalLM.from_pretrained(
            plain_folder, quantization_config=config, dtype=torch.bfloat16
        ).eval()
        assert not repacked or repack(base) == 7 * LAYERS
        model = with_lora(base)
        randomize(model)
        before = integers(model)
        model.merge_adapter()
        layouts = {layer.base_layer.layout for layer in lora_layers(model).values()}
        assert layouts == {"torch_int4" if repacked else "released"}
        results.append(integers(model))  # stored in the released order, whatever the layout
        model.unmerge_adapter()
        assert all(torch.equal(before[name], tensor) for name, tensor in integers(model).items())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_disabling_a_merged_adapter_unmerges_it(plain_folder) -> None:
    model = with_lora(quantized(plain_folder, bits=4))
    with model.disable_adapter():
        expected = logits(model)
    randomize(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"use_dora": True}, "DoraLinearVariant"), ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'")],
)
@pytest.mark.parametrize("told", [True, False])
def test_variants_that_read_the_weight_are_refused(plain_folder, settings, words: str, told: bool) -> None:
    with pytest.raises(ValueError, match=words):
        with_lora(quantized(plain_folder, bits=8), told=told, **settings)


def test_a_broken_adapter_changes_nothing(plain_folder) -> None:
    model = with_lora(quantized(plain_folder, bits=4))
    randomize(model)
    layer = next(iter(lora_layers(model).values()))
    layer.lora_B["default"].weight.data[0] = float("nan")
    before = integers(model)
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter()
    assert all(torch.equal(before[name], tensor) for name, tensor in integers(model).items())


# Saving and opening.


@pytest.mark.parametrize("method", ["lora", "qlora", "ia3", "prefix", "prompt", "p-tuning"])
def test_adapters_save_and_open(plain_folder, tmp_path: Path, method: str) -> None:
    arguments = AdapterArguments(method=method, virtual_tokens=4)

    def base() -> Any:
        config = arguments.quantization_config(torch.float32)
        return AutoModelForCausalLM.from_pretrained(plain_folder, quantization_config=config).eval()

    model = adapt(base(), arguments, "CAUSAL_LM").eval()
    randomize(model, std=0.3)
    expected = logits(model)
    assert not torch.allclose(expected[:, -IDS.shape[1] :], logits(base())) or method == "ia3"
    model.save_pretrained(tmp_path)
    again = load_adapter(base(), tmp_path).eval()
    assert torch.equal(logits(again), expected)
    if method not in IN_FRONT:  # PEFT leaves the virtual tokens trainable
        assert not any(p.requires_grad for p in again.parameters())
    if method in IN_FRONT:
        with pytest.raises(ValueError, match="made of virtual tokens, which PEFT opens for use only"):
            load_adapter(base(), tmp_path, trainable=True)
    else:
        assert any(p.requires_grad for p in load_adapter(base(), tmp_path, trainable=True).parameters())


def test_an_adapter_for_another_model_is_refused(plain_folder, tmp_path: Path) -> None:
    with_lora(quantized(plain_folder, bits=8)).save_pretrained(tmp_path / "glm")
    adapt(tiny_ernie("uie"), AdapterArguments(), None).save_pretrained(tmp_path / "uie")
    adapt(tiny_model(), AdapterArguments(method="prefix"), "CAUSAL_LM").save_pretrained(tmp_path / "prefix")
    for folder, model in (
        ("glm", tiny_ernie("uie")),
        ("uie", tiny_model()),
        ("glm", tiny_model(hidden_size=32)),
        ("glm", tiny_model(num_hidden_layers=2)),
        ("glm", tiny_model(num_hidden_layers=4)),
        ("prefix", tiny_model(num_hidden_layers=2)),
        ("prefix", tiny_model(hidden_size=32)),
    ):
        with pytest.raises(ValueError, match=r"was made for .* and does not fit this"):
            load_adapter(model, tmp_path / folder)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json and adapter_model\.safetensors missing"):
        load_adapter(tiny_model(), plain_folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "bitfit"}, "method='bitfit' is not one of full, lora"),
        ({"weights": "int3"}, "weights='int3' is not one of"),
        ({"method": "full", "weights": "int4"}, "Take method='qlora'"),
        ({"method": "prefix", "target_modules": ["q_proj"]}, "method='prefix' has none"),
    ],
)
def test_choices_that_make_no_sense(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AdapterArguments(**settings)


def test_choices_that_do_not_fit_the_model(plain_folder) -> None:
    with pytest.raises(ValueError, match="quantized weights, which cannot be trained"):
        adapt(quantized(plain_folder, bits=4), AdapterArguments(method="full"), "CAUSAL_LM")
    for model, method, task in (
        (tiny_ernie("uie"), "prefix", None),
        (tiny_ernie("tags"), "prompt", "TOKEN_CLS"),
        (tiny_ernie("native"), "p-tuning", "QUESTION_ANS"),
    ):
        with pytest.raises(ValueError, match=f"has no place for with task_type={task!r}"):
            adapt(model, AdapterArguments(method=method), task)


# Tokens in front of an encoder's text.


@pytest.mark.parametrize(
    ("kind", "method"), [("native", "prefix"), ("native", "prompt"), ("native", "p-tuning"), ("tags", "prefix")]
)
@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_virtual_tokens_on_classifiers_open_exactly(tmp_path: Path, kind: str, method: str, weights: str) -> None:
    arguments = AdapterArguments(method=method, weights=weights, virtual_tokens=4)
    task = {"native": "SEQ_CLS", "tags": "TOKEN_CLS"}[kind]
    plain: Any = tiny_ernie(kind)
    plain.save_pretrained(tmp_path / "base")

    def base() -> Any:
        config = arguments.quantization_config(torch.float32, ["pooler.dense", "classifier"])
        return type(plain).from_pretrained(tmp_path / "base", quantization_config=config).eval()

    ids = torch.tensor([[1, 5, 6, 7, 2, 0], [1, 5, 6, 7, 8, 2]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": torch.zeros_like(ids)}
    labels = torch.tensor([1, 1]) if kind == "native" else torch.where(ids == 0, -100, 1)
    model: Any = adapt(base(), arguments, task)
    randomize(model, std=0.3)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("prompt_encoder" in name or "classifier" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    expected = logits(model, **inputs)
    assert expected.shape[:-1] == (labels.shape)
    assert (expected - logits(base(), **inputs)).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(base(), tmp_path / "adapter").eval(), **inputs), expected)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-glm-ernie\[peft\]'"):
        adapt(tiny_model(), AdapterArguments(), "CAUSAL_LM")


# Tokens in front of the text.

VIRTUAL = 5
IN_FRONT = ["prefix", "prompt", "p-tuning"]
PROMPTS = [
    [9, 8, MASK, 7, 6, SOP],
    [19, 8, 17, 16, 15, 14, GMASK, SOP],
    [9, SMASK, 7, SOP],
]


def spelled_out(row: list[int], real: list[int]) -> tuple[list[int], torch.Tensor]:
    """Positions and visibility of virtual tokens and a row: all of the context, virtual tokens too, sees itself."""
    tokens = [-1] * VIRTUAL + row
    real = [1] * VIRTUAL + real
    start = tokens.index(SOP)
    positions = [max(sum(real[: i + 1]) - 1, 0) for i in range(len(tokens))]
    kind = next((kind for kind in (MASK, SMASK) if kind in tokens[:start]), None)
    if kind is not None:
        place = positions[tokens.index(kind)]
        positions = [place if i >= start else position for i, position in enumerate(positions)]
    visible = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for query in range(len(tokens)):
        for key in range(len(tokens)):
            seen = key <= query or (query < start and key < start)
            visible[query, key] = (seen and bool(real[key])) or query == key
    return positions, visible


def reference_logits(adapted: Any, method: str, row: list[int], real: list[int]) -> torch.Tensor:
    """(len, vocabulary) of the row, everything that PEFT drops passed explicitly."""
    base, ids = adapted.get_base_model(), torch.tensor([row])
    positions, visible = spelled_out(row, real)
    layout = {"position_ids": torch.tensor([positions]), "token_type_ids": torch.ones(1, len(positions)).long()}
    with torch.no_grad():
        in_front = adapted.get_prompt(1)
        if method == "prefix":
            layout = {name: value[:, VIRTUAL:] for name, value in layout.items()}
            mask = visible[None, None, VIRTUAL:]
            return base(input_ids=ids, past_key_values=in_front, attention_mask=mask, **layout).logits[0]
        embeds = torch.cat([in_front, base.get_input_embeddings()(ids)], dim=1)
        return base(inputs_embeds=embeds, attention_mask=visible[None, None], **layout).logits[0, VIRTUAL:]


@pytest.fixture(scope="module", params=IN_FRONT)
def in_front(request: pytest.FixtureRequest) -> tuple[str, Any]:
    model = tiny_model(seed=3, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3)
        model.lm_head.weight[[MASK, GMASK, SMASK, SOP]] = 0.0
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = [EOP, EOS]
    adapted = adapt(model, AdapterArguments(method=request.param, virtual_tokens=VIRTUAL), "CAUSAL_LM").eval()
    randomize(adapted, std=0.7)
    return request.param, adapted


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def test_context_and_positions_behind_virtual_tokens(in_front) -> None:
    method, adapted = in_front
    batch = padded([[*prompt, 11, 12] for prompt in PROMPTS])
    real = batch["attention_mask"].bool()
    got = logits(adapted, **batch)[:, -real.shape[1] :]
    for row in range(len(PROMPTS)):
        expected = reference_logits(adapted, method, batch["input_ids"][row].tolist(), real[row].long().tolist())
        assert (got[row] - expected)[real[row]].abs().max() < 1e-5
    causal = adapted.get_base_model()(batch["input_ids"][:1, 2:], token_type_ids=torch.ones(1, 8).long()).logits
    assert (causal[0] - got[0, 2:]).abs().max() > 0.1


def test_generation_behind_virtual_tokens(in_front) -> None:
    method, adapted = in_front
    batch = padded(PROMPTS)
    expected = []
    for prompt in PROMPTS:
        row: list[int] = list(prompt)
        while len(row) < len(prompt) + 6 and row[-1] not in (EOP, EOS):
            row.append(int(reference_logits(adapted, method, row, [1] * len(row))[-1].argmax()))
        expected.append(row[len(prompt) :])
    assert len(set(map(tuple, expected))) > 1

    def answers(**settings: Any) -> list[list[int]]:
        output = adapted.generate(**batch, max_new_tokens=6, **settings)[:, batch["input_ids"].shape[1] :].tolist()
        return [answer[: len(wanted)] for answer, wanted in zip(output, expected, strict=True)]

    assert answers(do_sample=False) == expected
    if method != "prefix":  # a prefix is a cache
        assert answers(do_sample=False, use_cache=False) == expected
        assert answers(num_beams=3) == answers(num_beams=3, use_cache=False)


def test_only_what_stands_in_front_is_trained(in_front) -> None:
    _, adapted = in_front
    before = {name: tensor.clone() for name, tensor in adapted.get_base_model().state_dict().items()}
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    assert all("prompt_encoder" in name for name in trained)
    labels = torch.tensor([[-100] * 6 + [11, 12]])
    adapted(input_ids=IDS, labels=labels).loss.backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if name in trained}
    assert any(g is not None and g.abs().sum() > 0 for g in gradients.values())
    adapted.zero_grad()
    assert all(torch.equal(before[name], t) for name, t in adapted.get_base_model().state_dict().items())


def test_a_prompt_given_as_embeddings() -> None:
    model = tiny_model(seed=3)
    model.generation_config.pad_token_id = PAD
    ids = torch.tensor([PROMPTS[0]])
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(logits(model, input_ids=None, inputs_embeds=embeds), logits(model, input_ids=ids))
    answer = model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False)
    assert torch.equal(answer, model.generate(ids, max_new_tokens=5, do_sample=False)[:, ids.shape[1] :])
