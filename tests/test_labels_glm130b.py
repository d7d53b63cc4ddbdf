"""Labels on bidirectional context, and rows joined without a layout, are errors on every way to a loss."""

from types import MethodType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling, DataCollatorWithFlattening

from hf_glm_ernie import Glm130bCollator, Glm130bForCausalLM, Glm130bTokenizer, InstructionPairs, Packing
from hf_glm_ernie.inputs_glm130b import check_labels, labels_seen_first
from tests.support.tiny_models import GMASK, MASK, SOP, tiny_config

IDS = torch.tensor([[9, 8, GMASK, SOP, 5, 6, 7], [9, MASK, 8, 7, SOP, 5, 6]])
ANSWER = torch.where(torch.tensor([[False] * 4 + [True] * 3, [False] * 5 + [True] * 2]), IDS, -100)
CONTEXT_TOO = torch.where(torch.arange(7) == 1, IDS, ANSWER)
JOINED = torch.tensor([[9, GMASK, SOP, 5, 6, 8, GMASK, SOP, 7]])
JOINED_LABELS = torch.tensor([[-100, -100, -100, 5, 6, -100, -100, -100, 7]])


@pytest.fixture
def model() -> Glm130bForCausalLM:
    return Glm130bForCausalLM(tiny_config(hidden_dropout=0.0, attention_dropout=0.0)).eval()


def test_where_the_label_stands_and_what_to_do(model) -> None:
    said = r"labels\[0, 1\] = 8 stands on context.*InstructionPairs.*assistant_only_loss.*add_special_tokens=False"
    with pytest.raises(ValueError, match=said):
        model(IDS, labels=CONTEXT_TOO)
    with pytest.raises(ValueError, match=r"labels\[0, 0\] = 9"):
        model(IDS, labels=IDS)
    assert model(IDS, labels=ANSWER).loss > 0


def test_labels_behind_the_context_and_without_one_are_free(model) -> None:
    on_sop = torch.where(IDS == SOP, IDS, ANSWER)
    assert model(IDS, labels=on_sop).loss > 0
    causal = torch.tensor([[9, 8, MASK, 5, 6]])  # a row without <sop>
    assert model(causal, labels=causal).loss > 0
    types = torch.ones_like(IDS)
    assert model(IDS, token_type_ids=types, labels=IDS).loss > 0  # the caller says that all of it is causal
    with pytest.raises(ValueError, match=r"labels\[0, 2\] = 8"):
        model(causal, token_type_ids=torch.tensor([[1, 1, 0, 1, 1]]), labels=torch.full((1, 5), 8))


def test_labels_shifted_already(model) -> None:
    """`shift_labels`, which the host's Trainer passes where it cuts rows over devices: scored and checked alike."""
    shifted = torch.nn.functional.pad(ANSWER[:, 1:], (0, 1), value=-100)
    loss = model(IDS, labels=ANSWER).loss
    assert torch.equal(model(IDS, shift_labels=shifted).loss, loss)
    assert torch.equal(model(IDS, labels=torch.full_like(IDS, 5), shift_labels=shifted).loss, loss)
    with pytest.raises(ValueError, match=r"labels\[0, 1\] = 8 stands on context"):
        model(IDS, shift_labels=torch.nn.functional.pad(CONTEXT_TOO[:, 1:], (0, 1), value=-100))


def test_padding_on_the_left_is_no_context(model) -> None:
    ids = torch.tensor([[3, 3, 9, GMASK, SOP, 5, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    labels = torch.tensor([[-100] * 5 + [5, 6]])
    assert model(ids, attention_mask=mask, labels=labels).loss > 0


def test_the_switch(model, tmp_path) -> None:
    model.config.allow_context_labels = True
    loss = model(IDS, labels=IDS).loss
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again(IDS, labels=IDS).loss.item() == pytest.approx(loss.item(), rel=1e-6)
    strict = AutoModelForCausalLM.from_pretrained(tmp_path, allow_context_labels=False)
    with pytest.raises(ValueError, match="stands on context"):
        strict(IDS, labels=IDS)


def test_embeddings_in_place_of_ids_are_checked(model) -> None:
    virtual = torch.cat([torch.randn(2, 3, model.config.hidden_size), model.get_input_embeddings()(IDS)], dim=1)
    front = torch.full((2, 3), -100)
    assert model(inputs_embeds=virtual, labels=torch.cat([front, ANSWER], dim=1)).loss > 0
    with pytest.raises(ValueError, match=r"labels\[0, 4\] = 8 stands on context"):
        model(inputs_embeds=virtual, labels=torch.cat([front, CONTEXT_TOO], dim=1))


@pytest.mark.parametrize("method", ["prompt", "prefix", "lora"])
def test_adapters_are_checked(model, method: str) -> None:
    pytest.importorskip("peft", reason="adapters need peft (the extra `peft`)")
    from hf_glm_ernie import AdapterArguments, adapt

    adapted: Any = adapt(model, AdapterArguments(method=method), "CAUSAL_LM")
    assert adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=ANSWER).loss > 0
    with pytest.raises(ValueError, match="8 stands on context"):
        adapted(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=CONTEXT_TOO)


def test_rows_joined_without_a_layout(model) -> None:
    with pytest.raises(
        ValueError, match=r"At \[0, 7\] .* another answer, without token_type_ids.*Packing and Glm130b"
    ):
        model(JOINED, labels=JOINED_LABELS)
    assert model(JOINED).loss is None  # what a model wrote, or is scored on elsewhere, may have several
    rows = [{"input_ids": JOINED[0, :5].tolist(), "labels": JOINED_LABELS[0, :5].tolist()}] * 2
    flat = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows)
    labels = flat.pop("labels")
    with pytest.raises(ValueError, match=r"cu_seq_lens_q and cu_seq_lens_k.*Packing"):
        model(**flat)
    with pytest.raises(ValueError, match=r"At \[0, 5\] of the batch another row begins"):
        model(input_ids=flat["input_ids"], position_ids=flat["position_ids"], labels=labels)
    causal = DataCollatorWithFlattening()([{"input_ids": [9, 8, 7]}, {"input_ids": [5, 6]}])
    with pytest.raises(ValueError, match=r"At \[0, 3\] of the batch another row begins"):
        model(**causal)
    alone = DataCollatorWithFlattening()([{"input_ids": [9, 8, 7]}])
    assert model(**alone).loss > 0


def test_positions_that_do_not_count_on_are_one_row(model) -> None:
    ids, labels = torch.tensor([[MASK, 9, SOP, 5, 6]]), torch.tensor([[-100, -100, -100, 5, 6]])
    assert model(ids, position_ids=torch.tensor([[0, 1, 0, 0, 0]]), labels=labels).loss > 0


def test_packed_rows_with_their_layout_pass(model) -> None:
    row = {"input_ids": [9, GMASK, SOP, 5, 6], "token_type_ids": [0, 0, 1, 1, 1], "position_ids": [0, 1, 2, 3, 4]}
    columns = {name: [values] * 3 for name, values in (row | {"labels": [-100, -100, -100, 5, 6]}).items()}
    packed = Packing(16)(columns)
    rows = [dict(zip(packed, values, strict=True)) for values in zip(*packed.values(), strict=True)]
    batch = Glm130bCollator(3)(rows)
    alone = model(torch.tensor([row["input_ids"]]), labels=torch.tensor([columns["labels"][0]])).loss
    assert model(**batch).loss.item() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_stops_too(model, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model.train(), backend=backend, fullgraph=True)
    loss = compiled(IDS, labels=ANSWER).loss
    loss.backward()
    assert loss.item() == pytest.approx(model(IDS, labels=ANSWER).loss.item(), rel=1e-4)
    for ids, labels in ((IDS, CONTEXT_TOO), (JOINED, JOINED_LABELS)):
        with pytest.raises(RuntimeError, match="labels on bidirectional context"):
            compiled(ids, labels=labels)


def test_the_text_of_a_compiled_graph_fits_into_the_kernel_s(model) -> None:
    from hf_glm_ernie.inputs_glm130b import SAID_BY_A_GRAPH

    assert len(SAID_BY_A_GRAPH.encode()) < 256


def test_a_forward_that_keeps_the_labels_to_itself_is_checked_first(model) -> None:
    """TRL's trainer sets such a one on the model, also under an adapter."""
    calls = []

    def scoring(self: Any, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        calls.append(labels)
        return self.model(*args, **kwargs)

    model.forward = MethodType(scoring, model)
    model(IDS, labels=ANSWER)
    model.forward(input_ids=IDS, labels=ANSWER)
    assert len(calls) == 2
    assert calls[0] is ANSWER
    for call in (model, model.forward):
        with pytest.raises(ValueError, match="8 stands on context"):
            call(IDS, labels=CONTEXT_TOO)
    assert len(calls) == 2


def test_a_forward_that_passes_labels_on_stays_as_it_is(model) -> None:
    def passing(self: Any, *args: Any, **kwargs: Any) -> Any:
        return type(self).forward(self, *args, **kwargs)

    for forward in (model.forward, MethodType(passing, model), len):
        assert labels_seen_first(model, forward, type(model).forward) is forward
    model.forward = MethodType(passing, model)
    with pytest.raises(ValueError, match="8 stands on context"):
        model(IDS, labels=CONTEXT_TOO)


def test_shapes_that_differ_are_left_to_the_loss() -> None:
    check_labels(torch.tensor([[1, 2]]), torch.tensor([[0]]))


def test_the_host_s_collator_for_causal_models(tokenizer, model_of_tokenizer) -> None:
    """What `DataCollatorForLanguageModeling(mlm=False)` makes of rows with context was learnt by heart before."""
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = InstructionPairs(tokenizer)({"prompt": ["the lazy", "a dog"], "answer": ["dog", "the"]})
    batch = collator([{"input_ids": ids} for ids in rows["input_ids"]])
    with pytest.raises(ValueError, match="stands on context"):
        model_of_tokenizer(**batch)
    causal = collator([{"input_ids": tokenizer("the lazy dog", add_special_tokens=False)["input_ids"]}])
    assert model_of_tokenizer(**causal).loss > 0


@pytest.fixture
def tokenizer(tmp_path) -> Glm130bTokenizer:
    from tests.support.tiny import write_ice_text_model

    return Glm130bTokenizer.from_ice_text_model(write_ice_text_model(tmp_path / "ice_text.model"), 0)


@pytest.fixture
def model_of_tokenizer(tokenizer) -> Glm130bForCausalLM:
    names = ("mask", "gmask", "smask", "sop", "eop", "pad")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    return Glm130bForCausalLM(tiny_config(vocab_size=len(tokenizer), **ids))
