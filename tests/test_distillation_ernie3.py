"""Online distillation: relations against a slow loop, and who learns from whom in one pass."""

import copy

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from hf_glm_ernie.ernie3_training.distillation import (
    OnlineDistillation,
    add_auxiliary_layer,
    drop_auxiliary_layer,
    has_auxiliary_layer,
)
from hf_glm_ernie.ernie3_training.relations import (
    Relations,
    common_relation_heads,
    recorded_relations,
    relation_divergence,
    relation_log_probabilities,
    understanding_layers,
)
from hf_glm_ernie.modeling_ernie3 import Ernie3Model
from hf_glm_ernie.modeling_ernie3_heads import Ernie3ForCausalLM, Ernie3ForMaskedLM
from hf_glm_ernie.modeling_ernie3_pretraining import Ernie3ForPreTraining
from tests.reference import ernie3_distillation_naive as naive
from tests.support.distillation_ernie3_tiny import VOCABULARY, encoder, padded, rows, unified


def random_relations(width, heads, rows=3, tokens=6):
    return Relations(*(torch.randn(rows, tokens, width) for _ in range(3)), heads)


WIDTHS = [(24, 24, 4), (24, 12, 3), (16, 24, 8), (7, 5, 1)]
SOME_PADDING = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0]])


BETWEEN = {
    "query-key": ("queries", "keys"),
    "query-query": ("queries", "queries"),
    "key-key": ("keys", "keys"),
    "value-value": ("values", "values"),
}


@pytest.mark.parametrize("relation", BETWEEN)
@pytest.mark.parametrize("mask", [SOME_PADDING, torch.ones(3, 6)], ids=["padding", "whole"])
@pytest.mark.parametrize(("teacher_width", "student_width", "heads"), WIDTHS)
def test_divergence_equals_the_slow_loop(teacher_width, student_width, heads, mask, relation):
    teacher, student = random_relations(teacher_width, 1), random_relations(student_width, 1)
    found = relation_divergence(teacher, student, mask, heads, [relation])
    pairs = [[getattr(one, part) for part in BETWEEN[relation]] for one in (teacher, student)]
    expected = naive.divergence(*pairs, mask, heads)
    assert found.dtype == torch.float32
    # fp32 against Python floats; measured 1.4e-7, on values from 0.3 to 0.8.
    assert abs(found.item() - expected) < 1e-6
    reverse = relation_divergence(student, teacher, mask, heads, [relation])
    assert abs(reverse.item() - expected) > 1e-3  # it has a direction


def test_several_relations_count_alike():
    teacher, student = random_relations(24, 1), random_relations(12, 1)
    single = [relation_divergence(teacher, student, SOME_PADDING, 4, [one]) for one in BETWEEN]
    found = relation_divergence(teacher, student, SOME_PADDING, 4, list(BETWEEN))
    torch.testing.assert_close(found, torch.stack(single).mean())


def test_divergence_of_a_model_from_itself_is_zero():
    relations = random_relations(24, 4)
    assert relation_divergence(relations, relations, SOME_PADDING, 4).item() == 0.0


def test_what_stands_at_padding_does_not_matter():
    teacher, student = random_relations(24, 4), random_relations(24, 4)
    expected = relation_divergence(teacher, student, SOME_PADDING, 4)
    wide = [torch.full((3, 9, 24), float("nan")) for _ in range(4)]
    originals = (teacher.queries, teacher.keys, student.queries, student.keys)
    for copied, original in zip(wide, originals, strict=True):
        copied[:, :6] = original.masked_fill(SOME_PADDING[..., None] == 0, float("nan"))
    mask = torch.nn.functional.pad(SOME_PADDING, (0, 3))
    wide[2].requires_grad_()
    found = relation_divergence(
        Relations(wide[0], wide[1], wide[1], 4), Relations(wide[2], wide[3], wide[3], 4), mask, 4
    )
    # Rows of another width are summed in another order.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_half_precision_is_compared_in_single():
    teacher, student = random_relations(24, 4), random_relations(24, 4)
    halves = [
        Relations(*(part.bfloat16() for part in (one.queries, one.keys, one.values)), 4) for one in (teacher, student)
    ]
    singles = [Relations(*(part.float() for part in (one.queries, one.keys, one.values)), 4) for one in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relation_divergence(*halves, SOME_PADDING, 4)
    assert torch.equal(found, relation_divergence(*singles, SOME_PADDING, 4))


@pytest.mark.parametrize("make", [unified, encoder, lambda: encoder(BertForMaskedLM)], ids=["ernie3", "ernie", "bert"])
def test_relations_are_the_last_attention(make):
    model = make().eval()
    model.set_attn_implementation("eager")
    inputs = padded(rows(5))
    mask = (inputs["input_ids"] != 0).long()
    with recorded_relations(model) as found:
        attention = model(inputs["input_ids"], attention_mask=mask, output_attentions=True).attentions[-1]
    (relations,) = found
    probabilities = relation_log_probabilities(relations.queries, relations.keys, relations.heads, mask).exp()
    real = (mask[:, None, :, None] * mask[:, None, None, :]).expand_as(attention).bool()
    # The same numbers by another order of operations.
    torch.testing.assert_close(probabilities[real], attention[real], rtol=0, atol=1e-6)
    model(inputs["input_ids"], attention_mask=mask)
    assert len(found) == 1  # the hooks are gone


@pytest.mark.parametrize(
    ("teacher", "student", "wanted", "expected"),
    [
        ((12, 768), (12, 312), None, 12),  # as many heads: attention against attention
        ((12, 768), (16, 1024), None, 8),
        ((12, 768), (2, 128), None, 8),
        ((16, 1024), (12, 768), None, 16),
        ((16, 1024), (12, 312), None, 8),
        ((1, 7), (1, 5), None, 1),
        ((12, 768), (12, 768), 48, 48),
        ((4, 28), (3, 15), 1, 1),
    ],
)
def test_relation_heads_divide_both_widths(teacher, student, wanted, expected):
    assert common_relation_heads(*teacher, *student, wanted) == expected


def test_teacher_gets_no_gradient_from_distillation():
    teacher = unified()
    alone = copy.deepcopy(teacher)
    students = {"unified": unified(Ernie3ForMaskedLM, 1), "encoder": encoder()}
    together = OnlineDistillation(teacher, students, encoder(seed=2), student_loss_weight=1.0)
    batch = padded(rows(6))
    output = together(**batch)
    output.loss.backward()
    own = alone(**batch)
    own.loss.backward()
    assert torch.equal(output.model_losses["teacher"], own.loss.detach())
    for (name, mine), other in zip(teacher.named_parameters(), alone.parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None, name
        else:
            assert torch.equal(mine.grad, other.grad), name
    assert all(value > 0 for value in output.model_losses.values())
    total = sum(output.model_losses.values())
    torch.testing.assert_close(output.loss.detach(), total)


@pytest.mark.parametrize("auxiliary_layer", [True, False])
def test_every_kept_layer_learns_with_the_auxiliary_layer_only(auxiliary_layer):
    students = {"unified": unified(Ernie3ForMaskedLM, 1, branch_num_attention_heads=3), "encoder": encoder()}
    together = OnlineDistillation(unified(), students, auxiliary_layer=auxiliary_layer)
    together(**padded(rows(6))).loss.backward()
    behind_attention = {"unified": ("linear1", "linear2"), "encoder": ("intermediate.dense", "output.dense")}
    for name, student in students.items():
        layers, kept, _ = understanding_layers(student)
        assert len(layers) == kept + auxiliary_layer
        kept_layers = [*layers[:kept]]
        if name == "unified":
            kept_layers += [
                *student.ernie3.encoder.layers,
                student.ernie3.encoder_norm,
                student.ernie3.task_projection,
            ]
        dead = {
            (i, key)
            for i, layer in enumerate(kept_layers)
            for key, parameter in layer.named_parameters()
            # A key's bias shifts all scores of a query alike, which softmax does not see.
            if not key.endswith(("k_proj.bias", "key.bias"))
            and (parameter.grad is None or not parameter.grad.abs().max() > 0)
        }
        if auxiliary_layer:
            assert not dead
        else:
            for linear in behind_attention[name]:
                assert (kept - 1, f"{linear}.weight") in dead
            assert not [(i, key) for i, key in dead if i != kept - 1]


def test_padding_changes_nothing():
    together = OnlineDistillation(unified(), {"a": encoder(), "b": unified(Ernie3Model, 1)}, encoder(seed=2)).eval()
    some = rows(6)
    narrow, wide = together(**padded(some)), together(**padded(some, 20))
    for name, value in narrow.model_losses.items():
        torch.testing.assert_close(wide.model_losses[name], value, rtol=0, atol=1e-6)  # measured 1.2e-7
    explicit = together(**padded(some), attention_mask=(padded(some)["input_ids"] != 0).long())
    assert torch.equal(explicit.loss, narrow.loss)


def test_a_copy_of_the_teacher_has_nothing_to_learn():
    teacher = encoder(seed=4)
    output = OnlineDistillation(teacher, {"copy": copy.deepcopy(teacher)}, auxiliary_layer=False)(**padded(rows(6)))
    assert output.model_losses["copy/distillation"].item() == 0.0
    carried = OnlineDistillation(teacher, {"copy": copy.deepcopy(teacher)})(**padded(rows(6)))
    assert carried.model_losses["copy/distillation"].item() > 0  # its auxiliary layer is new


def test_who_learns_from_whom():
    teacher, assistant, student = unified(), encoder(seed=2, num_attention_heads=4), encoder(seed=3)
    inputs = padded(rows(6))
    mask = (inputs["input_ids"] != 0).long()
    together = OnlineDistillation(teacher, {"a": student}, assistant).eval()
    assert together.students_learn_from == "assistant"
    assert together.relation_heads == {"assistant": 2, "a": 4}
    recorded = {}
    for name, model in together.models().items():
        with torch.no_grad(), recorded_relations(model) as found:
            model(inputs["input_ids"], attention_mask=mask)
        recorded[name] = found[0]
    losses = together(**inputs).model_losses
    expected = relation_divergence(recorded["teacher"], recorded["assistant"], mask, 2)
    assert torch.equal(losses["assistant/distillation"], expected)
    assert torch.equal(losses["a/distillation"], relation_divergence(recorded["assistant"], recorded["a"], mask, 4))

    from_teacher = OnlineDistillation(teacher, {"a": student}, assistant, students_learn_from="teacher").eval()
    losses = from_teacher(**inputs).model_losses
    assert torch.equal(losses["a/distillation"], relation_divergence(recorded["teacher"], recorded["a"], mask, 2))


@pytest.mark.parametrize("kind", ["encoder", "unified"])
def test_own_objective_reads_the_layers_that_are_kept(kind):
    teacher, student = unified(), encoder(seed=3) if kind == "encoder" else unified(Ernie3ForMaskedLM, 3)
    inputs = padded(rows(6))
    asked = {"attention_mask": (inputs["input_ids"] != 0).long(), "labels": inputs["labels"]}
    own = student(inputs["input_ids"], **asked).loss
    weighted = OnlineDistillation(teacher, {"a": student}, student_loss_weight=0.5, distillation_weight=3.0)
    output = weighted(**inputs)
    assert has_auxiliary_layer(student)
    assert torch.equal(output.model_losses["a/own"], own.detach())
    assert not torch.equal(student(inputs["input_ids"], **asked).loss, own)  # outside of a pass the layer is there
    parts = output.model_losses
    torch.testing.assert_close(
        output.loss.detach(),
        parts["teacher"] + 3.0 * parts["a/distillation"] + 0.5 * parts["a/own"],
        rtol=0,
        atol=1e-6,
    )
    plain = OnlineDistillation(teacher, {"a": student})(**inputs)
    assert set(plain.model_losses) == {"teacher", "a/distillation"}
    assert torch.equal(plain.model_losses["a/distillation"], parts["a/distillation"])


def test_relations_are_those_asked_for():
    teacher, student, inputs = unified(), encoder(seed=3), padded(rows(6))
    losses = {
        name: OnlineDistillation(teacher, {"a": student}, relations=names)(**inputs).model_losses["a/distillation"]
        for name, names in {"all": list(BETWEEN), **{one: [one] for one in BETWEEN}}.items()
    }
    assert len({loss.item() for loss in losses.values()}) == 1 + len(BETWEEN)
    torch.testing.assert_close(losses["all"], torch.stack([losses[one] for one in BETWEEN]).mean())
    alike = OnlineDistillation(student, {"copy": copy.deepcopy(student)}, relations=list(BETWEEN))
    assert alike.eval()(**inputs).model_losses["copy/distillation"].item() == 0.0


@pytest.mark.parametrize("frozen", [True, False])
def test_without_teaching_learners_are_on_their_own(frozen):
    teacher = unified().requires_grad_(not frozen)
    together = OnlineDistillation(teacher, {"a": encoder()}, encoder(seed=2), student_loss_weight=0.5)
    batch = padded(rows(6))
    taught = together(**batch).model_losses
    together.teaching = False
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    output = together(**batch)
    assert len(calls) == (not frozen)
    expected = {name: loss for name, loss in taught.items() if name.endswith("/own")}
    expected |= {} if frozen else {"teacher": taught["teacher"]}
    assert output.model_losses == expected
    total = sum(0.5 * loss if name.endswith("/own") else loss for name, loss in expected.items())
    torch.testing.assert_close(output.loss.detach(), total)
    assert together.eval()(**batch).model_losses == taught  # evaluation compares relations
    mixed = {"knowledge_masked_lm": {"branch": "nlu", **batch}}
    assert together.train()(batches=mixed).losses.keys() == mixed.keys()
    together.student_loss_weight = 0.0
    with pytest.raises(ValueError, match="teaching is off and student_loss_weight=0"):
        together(**batch)


def test_a_frozen_teacher_only_teaches():
    teacher = unified(branch_attention_probs_dropout_prob=0.5).requires_grad_(False)
    together = OnlineDistillation(teacher, {"a": encoder()}).train()
    assert not teacher.training
    batch = padded(rows(6))
    first, second = together(**batch), together(**batch)
    assert torch.equal(first.loss, second.loss)  # no dropout
    first.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert together.students["a"].ernie.encoder.layer[1].output.dense.weight.grad is not None


def test_auxiliary_layer_comes_and_goes():
    for model in (unified(), encoder()):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert not has_auxiliary_layer(model)
        layer = add_auxiliary_layer(model)
        layers, kept, _ = understanding_layers(model)
        assert has_auxiliary_layer(model)
        assert layers[-1] is layer
        assert len(layers) == kept + 1
        old, new = layers[-2].state_dict(), layer.state_dict()
        matrices = [name for name in new if new[name].ndim == 2]
        assert matrices
        assert not any(torch.equal(old[name], new[name]) for name in matrices)  # fresh, not a copy
        inner = [module for module in layer.modules() if hasattr(module, "config")]
        assert all(module.config is model.config for module in inner)
        indices = [module.layer_idx for module in layer.modules() if hasattr(module, "layer_idx")]
        above = [module.layer_idx for module in layers[-2].modules() if hasattr(module, "layer_idx")]
        assert indices == [index + 1 for index in above]
        with pytest.raises(ValueError, match="has an auxiliary layer already: 3 layers, 2 kept"):
            add_auxiliary_layer(model)
        drop_auxiliary_layer(model)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        with pytest.raises(ValueError, match="has no auxiliary layer"):
            drop_auxiliary_layer(model)


def test_checkpointed_layers_give_the_same_gradients():
    together = OnlineDistillation(unified(), {"a": encoder(), "b": unified(Ernie3ForMaskedLM, 1)}).train()
    batch = padded(rows(6))
    together(**batch).loss.backward()
    expected = {name: parameter.grad for name, parameter in together.named_parameters()}
    together.zero_grad()
    if hasattr(PreTrainedModel, "activation_checkpointing_enable"):
        together.activation_checkpointing_enable()
    else:
        together.gradient_checkpointing_enable()
    assert all(model.is_gradient_checkpointing for model in together.models().values())
    together(**batch).loss.backward()
    for name, parameter in together.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None, name
        else:
            assert torch.equal(parameter.grad, expected[name]), name


def test_data_parallel_wrapper_takes_the_output(tmp_path):
    together = OnlineDistillation(unified(), {"a": encoder(), "b": unified(Ernie3ForMaskedLM, 1)})
    batch = padded(rows(6))
    together(**batch).loss.backward()
    expected = {name: parameter.grad for name, parameter in together.named_parameters()}
    together.zero_grad()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(together, find_unused_parameters=True)
        wrapped(**batch).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in together.named_parameters():
        if expected[name] is not None:
            assert torch.equal(parameter.grad, expected[name]), name


def test_a_mixed_batch_teaches_on_the_understanding_branch():
    teacher, student = unified(), encoder(seed=3)
    masked, documents = padded(rows(4)), padded(rows(3, seed=1))["input_ids"].clamp_min(6)
    batches = {
        "document_lm": {"branch": "nlg", "input_ids": documents, "labels": documents},
        "knowledge_masked_lm": {"branch": "nlu", **masked},
        "sentence_distance": {
            "branch": "nlu",
            "input_ids": padded(rows(2, seed=2))["input_ids"],
            "distance_labels": torch.tensor([0, 2]),
        },
    }
    together = OnlineDistillation(teacher, {"a": student}, student_loss_weight=1.0).eval()
    output = together(batches=batches)
    assert set(output.losses) == set(batches)
    single = [
        together(input_ids=part["input_ids"], labels=part.get("labels")).model_losses
        for name, part in batches.items()
        if name != "document_lm"
    ]
    mean = (single[0]["a/distillation"] + single[1]["a/distillation"]) / 2
    torch.testing.assert_close(output.model_losses["a/distillation"], mean, rtol=0, atol=1e-6)
    assert torch.equal(output.model_losses["a/own"], single[0]["a/own"])
    with pytest.raises(ValueError, match=r"has only the tasks \['document_lm'\], none of the understanding branch"):
        together(batches={"document_lm": batches["document_lm"]})
    with pytest.raises(ValueError, match="Pass either input_ids or batches"):
        together(input_ids=documents, batches=batches)


def test_refusals_of_models():
    teacher = unified()
    with pytest.raises(ValueError, match="teacher's vocabulary has 40 tokens, that of 'a' 41"):
        OnlineDistillation(teacher, {"a": encoder(vocab_size=41)})
    with pytest.raises(ValueError, match=r"relation_heads=5 does not divide the widths 24 .*\[1, 2, 4, 8\]"):
        OnlineDistillation(teacher, {"a": encoder()}, relation_heads=5)
    with pytest.raises(ValueError, match=r"No number of relation heads above 1 divides the widths 24 .* and 7"):
        OnlineDistillation(teacher, {"a": encoder(hidden_size=7, num_attention_heads=1)})
    assert OnlineDistillation(
        teacher, {"a": encoder(hidden_size=7, num_attention_heads=1)}, relation_heads=1
    ).relation_heads == {"a": 1}
    for causal in (unified(Ernie3ForCausalLM), unified(branches=["nlg"])):
        with pytest.raises(ValueError, match=r"has the branches \['nlg'\], but relations are taken from"):
            OnlineDistillation(causal, {"a": encoder()})
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(TypeError, match=r"GPT2LMHeadModel is neither an ERNIE 3\.0 model nor an encoder"):
        OnlineDistillation(teacher, {"a": gpt})
    with pytest.raises(ValueError, match="students is empty"):
        OnlineDistillation(teacher, {})
    with pytest.raises(ValueError, match=r"name 'a.b' must consist of letters"):
        OnlineDistillation(teacher, {"a.b": encoder()})
    with pytest.raises(ValueError, match="cannot be named 'teacher'"):
        OnlineDistillation(teacher, {"teacher": encoder()})


def test_refusals_of_settings():
    teacher, inputs = unified(), padded(rows(4))
    with pytest.raises(ValueError, match="but no assistant was passed"):
        OnlineDistillation(teacher, {"a": encoder()}, students_learn_from="assistant")
    with pytest.raises(ValueError, match="students_learn_from='peer' must be"):
        OnlineDistillation(teacher, {"a": encoder()}, students_learn_from="peer")
    with pytest.raises(ValueError, match="student_loss_weight=-1 must not be negative"):
        OnlineDistillation(teacher, {"a": encoder()}, student_loss_weight=-1)
    with pytest.raises(ValueError, match="distillation_weight=-2 must not be negative"):
        OnlineDistillation(teacher, {"a": encoder()}, distillation_weight=-2)
    for wrong in (["query-value"], [], "query-key"):
        with pytest.raises(ValueError, match=r"must be a sequence of \['query-key', 'query-query'"):
            OnlineDistillation(teacher, {"a": encoder()}, relations=wrong)
    bare = OnlineDistillation(teacher, {"a": unified(Ernie3ForPreTraining, 1)}, student_loss_weight=1.0)
    bare.students["a"].forward = lambda input_ids, attention_mask, labels: bare.students["a"].ernie3(
        input_ids, attention_mask, branch="nlu"
    )
    with pytest.raises(ValueError, match="asks 'a' for a loss of its own, but Ernie3ForPreTraining gives none"):
        bare(**inputs)
    plain = OnlineDistillation(teacher, {"a": encoder()})
    with pytest.raises(ValueError, match=r"attention_mask has the shape \(4, 1, 2, 2\)"):
        plain(**inputs, attention_mask=torch.ones(4, 1, 2, 2))
    with pytest.raises(ValueError, match="do not divide the teacher's 24 wide queries"):
        relation_divergence(random_relations(24, 4), random_relations(24, 4), SOME_PADDING, 7)
    plain.students.requires_grad_(False)
    with pytest.raises(ValueError, match="relations of 'a' carry no gradient"):
        plain(**inputs)
