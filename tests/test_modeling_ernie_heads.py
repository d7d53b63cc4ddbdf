"""ErnieForUIE and ErnieForUTC: the original's outputs, masks, padding, training, loading, export."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModel, ErnieConfig, ErnieModel, Trainer, TrainingArguments

from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig
from hf_glm_ernie.inputs_ernie import additive_mask, encoder_inputs
from hf_glm_ernie.modeling_ernie_uie import ErnieForUIE
from hf_glm_ernie.modeling_ernie_utc import ErnieForUTC, tag_loss
from tests.conftest import GOLDEN
from tests.support.ernie_pdparams import converted

SHARED_CASES = ("uie_e3", "uie_notask_v2like", "utc_e3", "legacy235_uie_encoder_prefix")
SMALL_CASES = ("uie_task_type_1", "utc")

# fp32 in another order of additions: 5.1e-7 seen on probabilities, 2.4e-6 on UTC's logits.
EXACT = 2e-5

for config_class, model_class in ((ErnieUIEConfig, ErnieForUIE), (ErnieUTCConfig, ErnieForUTC)):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)


def check_goldens(folder: Path, implementation: str) -> int:
    model = converted(folder, attn_implementation=implementation)
    paths = sorted(folder.glob("golden_*.npz"))
    for path in paths:
        arrays = np.load(path)
        inputs = {name[3:]: torch.from_numpy(arrays[name]) for name in arrays if name.startswith("in.")}
        with torch.no_grad():
            output = model(**inputs)
        if "out.output" in arrays:
            pairs = [(output.logits, arrays["out.output"])]
        else:
            pairs = [(output.start_prob, arrays["out.output.0"]), (output.end_prob, arrays["out.output.1"])]
        for ours, theirs in pairs:
            assert np.abs(ours.numpy() - theirs).max() <= EXACT, path.name
    return len(paths)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SMALL_CASES)
def test_outputs_are_the_originals(name: str, implementation: str) -> None:
    assert check_goldens(GOLDEN / "ernie_small" / name, implementation) >= 1


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", SHARED_CASES)
def test_outputs_are_the_originals_full_set(name: str, implementation: str, shared_ernie: Path) -> None:
    assert check_goldens(shared_ernie / "models" / name, implementation) >= 2


SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "type_vocab_size": 4,
    "use_task_id": True,
    "task_id": 2,
    "initializer_range": 0.4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
IDS = torch.tensor([[1, 20, 21, 2, 30, 31, 32, 2], [1, 22, 2, 33, 34, 2, 0, 0]])
OMASK = torch.tensor([[1, 2, 4], [1, 3, 0]])
CLS = torch.tensor([3, 2])


def tiny(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    if kind == "uie":
        return ErnieForUIE(ErnieUIEConfig(**(SIZES | settings))).eval()
    return ErnieForUTC(ErnieUTCConfig(**(SIZES | settings))).eval()


def arguments(kind: str) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS} | ({} if kind == "uie" else {"omask_positions": OMASK, "cls_positions": CLS})


def logits(output: Any) -> torch.Tensor:
    return output.logits[:, :2] if "logits" in output else torch.stack((output.start_logits, output.end_logits))


def labelled(kind: str) -> dict[str, torch.Tensor]:
    if kind == "utc":
        return {"labels": torch.tensor([[1, 0, 0], [0, 1, -100]])}
    return {"start_positions": (IDS == 30).float(), "end_positions": (IDS == 31).long()}


both = pytest.mark.parametrize("kind", ["uie", "utc"])


@both
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_kind_of_mask(kind: str, implementation: str) -> None:
    model, inputs = tiny(kind, attn_implementation=implementation), arguments(kind)
    expected = logits(model(**inputs))  # pads are masked by themselves
    square = (IDS != 0)[:, None, None].expand(-1, 1, 8, 8)
    added = torch.zeros(2, 1, 8, 8).masked_fill(~square, -1e4)
    masks = [IDS != 0, (IDS != 0).long(), (IDS != 0).float(), square, square.long(), square[:, 0], added]
    for mask in [*masks, added.expand(-1, 4, -1, -1)]:
        assert (logits(model(**inputs, attention_mask=mask)) - expected).abs().max() < EXACT
    assert (logits(model(**inputs, attention_mask=torch.ones_like(IDS))) - expected).abs().max() > 1e-3


def test_masks_add_what_the_original_adds() -> None:
    mask = torch.tensor([[1, 0]])
    assert additive_mask(mask, torch.float32).tolist() == [[[[0.0, -1e4]]]]
    assert additive_mask(mask[None, None], torch.float32).tolist() == [[[[0.0, -1e9]]]]
    assert additive_mask(mask.bool()[None, None], torch.float32).tolist() == [[[[0.0, -1e9]]]]
    assert additive_mask(torch.tensor([[[[0.5, -3.0]]]]), torch.float32).tolist() == [[[[0.5, -3.0]]]]
    assert additive_mask(mask[None, None], torch.float16).tolist() == [[[[0.0, -65504.0]]]]
    with pytest.raises(ValueError, match=r"\(2,\)"):
        additive_mask(torch.ones(2), torch.float32)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_row_of_nothing_but_padding(implementation: str) -> None:
    """-1e4 on every score moves them all alike, so such a row is read as if unmasked; and it is no NaN."""
    model = tiny("uie", attn_implementation=implementation)
    ids = torch.cat((IDS, torch.zeros(1, 8, dtype=torch.long)))
    unmasked = model(input_ids=ids[2:], attention_mask=torch.ones(1, 8)).start_prob
    assert (model(input_ids=ids).start_prob[2:] - unmasked).abs().max() < 5e-4  # -1e4 leaves 1e-3 of the scores


def test_other_attention_implementations_get_the_mask_as_it_is() -> None:
    model = tiny("uie")
    model.config._attn_implementation = "flex_attention"
    inputs = encoder_inputs(model.get_input_embeddings(), model.config, IDS, None, None, None)
    assert inputs["attention_mask"].tolist() == (IDS != 0).long().tolist()


@both
def test_the_stored_pad_row_is_never_read(kind: str) -> None:
    model, inputs = tiny(kind), arguments(kind) | {"attention_mask": torch.ones_like(IDS)}
    expected = logits(model(**inputs))
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 7.0
    assert torch.equal(logits(model(**inputs)), expected)


@both
def test_the_encoder_is_the_hosts_given_the_same(kind: str) -> None:
    """Mask, task type and pad row spelled out, the host's own forward gives the same."""
    model = tiny(kind)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0.0
    hidden = model.ernie(
        IDS, attention_mask=(IDS != 0).long(), task_type_ids=torch.full_like(IDS, 2)
    ).last_hidden_state
    if kind == "uie":
        expected = torch.stack((model.linear_start(hidden)[..., 0], model.linear_end(hidden)[..., 0]))
    else:
        rows = torch.arange(2)
        query, keys = model.linear_q(hidden[rows, CLS]), model.linear_k(hidden[rows[:, None], OMASK])
        expected = (query[:, None] * keys).sum(-1)[:, :2] / 8
    assert (logits(model(**arguments(kind))) - expected).abs().max() < EXACT
    other = arguments(kind) | {"task_type_ids": torch.zeros_like(IDS)}
    assert (logits(model(**other)) - expected).abs().max() > 1e-2


@both
def test_embeddings_in_place_of_ids(kind: str) -> None:
    model, inputs = tiny(kind), arguments(kind)
    expected = logits(model(**inputs))
    embeds = model.get_input_embeddings()(inputs.pop("input_ids")).masked_fill((IDS == 0)[..., None], 0.0)
    assert (logits(model(**inputs, inputs_embeds=embeds, attention_mask=IDS != 0)) - expected).abs().max() < EXACT
    with pytest.raises(ValueError, match="exactly one"):
        model(**inputs)
    with pytest.raises(ValueError, match="exactly one"):
        model(**inputs, input_ids=IDS, inputs_embeds=embeds)


def test_absent_options() -> None:
    model = tiny("utc")
    assert model(**arguments("utc")).logits[1, 2] == -1e12
    for dtype in (torch.float16, torch.bfloat16):
        output = model.to(dtype)(**arguments("utc")).logits
        assert torch.isfinite(output).all()
        assert output[1, 2] < -6e4
    with pytest.raises(ValueError, match="cls_positions is missing"):
        model(input_ids=IDS, omask_positions=OMASK)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_half_precision(kind: str, dtype: torch.dtype, implementation: str) -> None:
    model = tiny(kind, attn_implementation=implementation, initializer_range=0.1)
    expected = logits(model(**arguments(kind)))
    square = (IDS != 0)[:, None, None].expand(-1, 1, 8, 8)
    halved = model.to(dtype)
    # two layers of numbers with 11 (fp16) or 8 (bf16) bits; 2.2e-3 and 1.6e-2 seen
    tolerance = 1e-2 if dtype == torch.float16 else 6e-2
    for mask in (None, IDS != 0, square):
        assert (logits(halved(**arguments(kind), attention_mask=mask)).float() - expected).abs().max() < tolerance
    empty = arguments(kind) | {"input_ids": torch.zeros_like(IDS)}
    assert torch.isfinite(logits(halved(**empty, attention_mask=torch.zeros(2, 1, 8, 8, dtype=torch.long)))).all()


@both
def test_autocast(kind: str) -> None:
    model = tiny(kind, initializer_range=0.1)
    expected = logits(model(**arguments(kind)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (logits(model(**arguments(kind))).float() - expected).abs().max() < 6e-2  # as bfloat16 above


def test_span_loss() -> None:
    model, labels = tiny("uie"), labelled("uie")
    output = model(input_ids=IDS, **labels)
    start = F.binary_cross_entropy(output.start_prob, labels["start_positions"])
    end = F.binary_cross_entropy(output.end_prob, labels["end_positions"].float())
    assert abs(output.loss - (start + end) / 2) < 1e-5  # fp32 logarithms of fp32 probabilities; 1e-7 seen
    with torch.no_grad():
        model.linear_start.bias.fill_(-1e3)  # a probability of zero: finite from the logits
    assert torch.isfinite(model(input_ids=IDS, **labels).loss)
    with pytest.raises(ValueError, match="Only start_positions"):
        model(input_ids=IDS, start_positions=labels["start_positions"])


def test_tag_loss() -> None:
    scores = torch.tensor([[1.0, -2.0, 0.5], [0.3, 2.0, -1e12]], requires_grad=True)
    labels = torch.tensor([[1, 0, 1], [0, 0, -100]])
    first = torch.log(1 + torch.exp(torch.tensor(-2.0))) + torch.log(
        1 + torch.exp(torch.tensor(-1.0)) + torch.exp(torch.tensor(-0.5))
    )
    second = torch.log(1 + torch.exp(torch.tensor(0.3)) + torch.exp(torch.tensor(2.0)))
    loss = tag_loss(scores, labels)
    assert abs(loss - (first + second) / 2) < 1e-6  # fp32 logarithms
    assert abs(loss - tag_loss(scores, labels.float())) == 0
    loss.backward()
    assert torch.isfinite(scores.grad).all()
    assert scores.grad[1, 2] == 0


@both
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**arguments(kind), **labelled(kind)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert "ernie.embeddings.word_embeddings.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name])
    assert gradients[0]["ernie.embeddings.word_embeddings.weight"][0].abs().max() == 0  # the pad row


@both
def test_trainer(kind: str, tmp_path: Path) -> None:
    model, rows = tiny(kind), arguments(kind) | labelled(kind)
    dataset = [{name: value[i] for name, value in rows.items()} for i in (0, 1) * 4]
    names = list(labelled(kind))
    settings: dict[str, Any] = {"label_names": names, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    losses = []
    for accumulation in (1, 2):
        arguments_ = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            **settings,
        )
        trainer = Trainer(tiny(kind), arguments_, train_dataset=dataset)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # accumulated as if in one batch (mean of equal parts)
    assert losses[0][1] < losses[0][0]
    metrics = Trainer(model, TrainingArguments(str(tmp_path), **settings), eval_dataset=dataset).evaluate()
    assert metrics["eval_loss"] == pytest.approx(model(**rows).loss.item(), rel=1e-4)


@both
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    model = tiny(kind, attn_implementation="eager")
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (saved["model_type"], saved["task_id"]) == (f"ernie_{kind}", 2)
    again, info = AutoModel.from_pretrained(tmp_path, attn_implementation="sdpa", output_loading_info=True)
    assert type(again) is type(model)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (logits(again(**arguments(kind))) - logits(model(**arguments(kind)))).abs().max() < EXACT
    names = {name.rsplit(".", 1)[0] for name, _ in model.named_parameters() if not name.startswith("ernie.")}
    assert names == ({"linear_start", "linear_end"} if kind == "uie" else {"linear_q", "linear_k"})
    assert "ernie.pooler.dense.weight" in model.state_dict()


@both
def test_starting_from_a_plain_encoder(kind: str, tmp_path: Path) -> None:
    encoder = ErnieModel(ErnieConfig(**{name: value for name, value in SIZES.items() if name != "task_id"}))
    encoder.save_pretrained(tmp_path)
    model, info = type(tiny(kind)).from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {
        name for name in ("linear_start", "linear_end", "linear_q", "linear_k") if hasattr(model, name)
    }
    assert torch.equal(model.get_input_embeddings().weight, encoder.get_input_embeddings().weight)
    assert model.config.task_id == 0


@pytest.mark.parametrize("config_class", [ErnieUIEConfig, ErnieUTCConfig])
def test_task_id_is_checked(config_class: Any) -> None:
    assert config_class(use_task_id=False, task_id=7).task_id == 7
    with pytest.raises(StrictDataclassClassValidationError, match="task_id=7"):
        config_class(use_task_id=True, task_id=7, task_type_vocab_size=3)


@both
def test_hidden_states_and_attentions(kind: str) -> None:
    model = tiny(kind, attn_implementation="eager")
    output = model(**arguments(kind), output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, 8, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 8, 8)] * 2
    plain = model(**arguments(kind), return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[0], output[0])


@both
def test_export(kind: str) -> None:
    model = tiny(kind)
    inputs = arguments(kind) | {"attention_mask": (IDS != 0).long(), "token_type_ids": torch.zeros_like(IDS)}
    batch, tokens = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("tokens", min=2, max=32)
    shapes = {name: {0: batch, 1: tokens} for name in ("input_ids", "attention_mask", "token_type_ids")}
    if kind == "utc":
        shapes |= {"omask_positions": {0: batch, 1: torch.export.Dim("options", min=2)}, "cls_positions": {0: batch}}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    longer = {name: torch.cat((value, value)) for name, value in inputs.items()}
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        longer[name] = F.pad(longer[name], (0, 5))
    for given in (inputs, longer):
        assert (logits(program(**given)) - logits(model(**given))).abs().max() < EXACT
    assert (logits(program(**longer))[..., :2, :2] - logits(model(**inputs))[..., :2]).abs().max() < EXACT


@both
def test_compile_without_breaks(kind: str) -> None:
    torch._dynamo.reset()
    model = tiny(kind)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert (logits(compiled(**arguments(kind))) - logits(model(**arguments(kind)))).abs().max() < EXACT
    torch._dynamo.reset()


def test_adapters_on_the_embedding() -> None:
    peft = pytest.importorskip("peft", reason="needs the test extra: peft")
    model = tiny("uie")
    before = logits(model(input_ids=IDS))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["word_embeddings", "query"]))
    assert torch.equal(logits(adapted(input_ids=IDS)), before)  # an adapter begins at zero
    adapted.train()
    adapted(input_ids=IDS, **labelled("uie")).loss.backward()
    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(gradients) == 2 + 2 * 2
    assert all(gradient is not None for gradient in gradients.values())
    assert any("word_embeddings" in name and gradient.abs().max() > 0 for name, gradient in gradients.items())


def test_arguments_are_the_documented_ones() -> None:
    expected = "input_ids attention_mask token_type_ids task_type_ids position_ids inputs_embeds start_positions"
    names = list(inspect.signature(ErnieForUIE.forward).parameters)
    assert names == ["self", *expected.split(), "end_positions", "kwargs"]
