"""ERNIE encoders against the original programs: PaddleNLP's file -> converter -> Auto class -> PaddleNLP's numbers.

What is compared is everything the original returned, for every input it was given. Where transformers' native class
computes something else by design, `ernie_goldens.native_inputs` says what it must be given, and a test here shows the
difference it makes otherwise.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, pipeline

from conversion.__main__ import main as convert
from tests.support.ernie_goldens import (
    AUTO_CLASSES,
    OWN,
    SHARED,
    SMALL,
    Golden,
    difference,
    goldens,
    native_inputs,
    run,
)

# Another order of additions than Paddle's. The bounds are the project's for parity; seen: 1.8e-5 where all is
# masked (-1e4 rounds the scores to steps of 1e-3), 3.6e-6 elsewhere, and 1.6e-5.
PARITY = 2e-5
PARITY_LOGITS = 5e-5
# What is called a difference: fifty bounds.
DIFFERS = 50 * PARITY
LARGE_VOCABULARY_HEADS = ("ErnieForMaskedLM", "ErnieForPretraining")

SMALL_GOLDENS = list(goldens(SMALL))
SHARED_GOLDENS = list(goldens(SHARED / "models"))
# What has no counterpart in the native class: it has no cache outside decoders.
NO_COUNTERPART = ("optional_kv_cache",)

Opener = Callable[..., PreTrainedModel]


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Converts a checkpoint once and says where."""
    folders: dict[Path, Path] = {}

    def convert_once(source: Path) -> Path:
        if source not in folders:
            folders[source] = tmp_path_factory.mktemp("ernie") / source.name
            assert convert(["ernie", f"--source={source}", f"--output={folders[source]}"]) == 0
        return folders[source]

    return convert_once


@pytest.fixture(scope="session")
def opened(converted: Callable[[Path], Path]) -> Callable[..., PreTrainedModel]:
    """Opens a converted checkpoint with its Auto class, once per attention implementation."""
    models: dict[tuple[Path, str], PreTrainedModel] = {}

    def open_once(golden: Golden, implementation: str) -> PreTrainedModel:
        key = golden.folder, implementation
        if key not in models:
            models[key] = (
                AUTO_CLASSES[golden.original_class]
                .from_pretrained(converted(golden.folder), attn_implementation=implementation, dtype=torch.float32)
                .eval()
            )
        return models[key]

    return open_once


def check(golden: Golden, model: PreTrainedModel) -> None:
    """Holds every output of a golden against the converted model."""
    inputs, flags = golden.inputs, {}
    positions = inputs.pop("masked_positions", None)
    if any(name.startswith(("hidden_states", "attentions")) for name in golden.outputs):
        flags = {"output_hidden_states": True, "output_attentions": model.config._attn_implementation == "eager"}
    output = run(model, inputs if golden.original_class in OWN else native_inputs(model, inputs), **flags)
    for name, expected in golden.outputs.items():
        field, _, number = name.partition(".")
        if field == "attentions" and not flags["output_attentions"]:
            continue  # sdpa does not compute them
        found = getattr(output, field)
        found = found[int(number)] if number else found
        if positions is not None and found.ndim == 3:
            found = found.flatten(0, 1)[positions]
        bound = PARITY_LOGITS if golden.original_class in LARGE_VOCABULARY_HEADS else PARITY
        assert difference(found, expected) <= bound, name


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("golden", SMALL_GOLDENS, ids=lambda golden: golden.id)
def test_small_goldens(opened: Opener, golden: Golden, implementation: str) -> None:
    check(golden, opened(golden, implementation))


@pytest.mark.skipif(
    not SHARED_GOLDENS,
    reason="needs the full golden sets beside the repository (../shared/goldens/ernie); those in tests/golden ran",
)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "golden", [golden for golden in SHARED_GOLDENS if golden.name not in NO_COUNTERPART], ids=lambda golden: golden.id
)
def test_every_golden(opened: Opener, golden: Golden, implementation: str) -> None:
    check(golden, opened(golden, implementation))


def plain(golden: Golden) -> dict[str, torch.Tensor]:
    """What a user of transformers gives: ids and the tokenizer's mask."""
    return {key: value for key, value in golden.inputs.items() if key in ("input_ids", "attention_mask")}


def small(name: str, case: str) -> Golden:
    return Golden(SMALL / name, case)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["features", "masked_lm", "token_classification_pad_1", "question_answering"])
def test_ids_and_mask_are_enough_for_every_token_that_is_not_padding(
    opened: Opener, name: str, implementation: str
) -> None:
    golden = small(name, "pad_mask2d")
    model = opened(golden, implementation)
    output = run(model, golden.inputs)
    tokens = golden.inputs["attention_mask"].bool()
    for field, expected in golden.outputs.items():
        where = tokens if expected.ndim > 1 and expected.shape[:2] == tokens.shape else None
        assert difference(getattr(output, field), expected, where) <= PARITY


def test_difference_without_a_mask(opened: Opener) -> None:
    """PaddleNLP masks padding by itself, the native class attends to it: every token changes."""
    golden = small("features", "pad_auto_mask")
    model = opened(golden, "sdpa")
    ids, types = golden.inputs["input_ids"], golden.inputs["token_type_ids"]
    tokens = ids != model.config.pad_token_id
    expected = golden.outputs["last_hidden_state"]
    without = run(model, {"input_ids": ids, "token_type_ids": types}).last_hidden_state
    given = run(model, {"input_ids": ids, "token_type_ids": types, "attention_mask": tokens.long()})
    assert difference(without[:1], expected[:1], tokens[:1]) > DIFFERS  # the padded row
    assert difference(given.last_hidden_state, expected, tokens) <= PARITY


def test_difference_of_padding_that_is_attended_to(opened: Opener) -> None:
    """PaddleNLP looks padding up as zeros, the native class reads the stored row."""
    golden = small("features", "pad_mask_all_ones")
    model = opened(golden, "sdpa")
    expected = golden.outputs["last_hidden_state"]
    assert difference(run(model, golden.inputs).last_hidden_state, expected) > DIFFERS
    assert difference(run(model, native_inputs(model, golden.inputs)).last_hidden_state, expected) <= PARITY


def test_difference_of_a_row_that_is_masked_whole(opened: Opener) -> None:
    """PaddleNLP adds -1e4 to all scores, which leaves their order; transformers attends to everything alike."""
    golden = small("features", "pad_mask2d")
    model = opened(golden, "eager")
    ids = golden.inputs["input_ids"]
    mask = torch.zeros_like(ids)
    added = native_inputs(model, {"input_ids": ids, "attention_mask": mask})
    words = {"inputs_embeds": added["inputs_embeds"]}
    plainly = run(model, words | {"attention_mask": mask}).last_hidden_state
    assert difference(plainly, run(model, added).last_hidden_state) > DIFFERS


def test_difference_of_int_masks_of_four_dimensions(opened: Opener) -> None:
    """PaddleNLP adds -1e9 where such a mask is 0; transformers adds the mask as it stands, or refuses it."""
    golden = small("features", "pad_mask2d")
    ids, mask = golden.inputs["input_ids"], golden.inputs["attention_mask"]
    square = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    types = {"token_type_ids": golden.inputs["token_type_ids"]}
    eager = run(opened(golden, "eager"), {"input_ids": ids, "attention_mask": square, **types}).last_hidden_state
    assert difference(eager, golden.outputs["last_hidden_state"], mask.bool()) > DIFFERS
    with pytest.raises(RuntimeError, match=r"(?i)mask"):
        run(opened(golden, "sdpa"), {"input_ids": ids, "attention_mask": square, **types})


@pytest.mark.parametrize("name", ["features_task_type_2", "masked_lm_task_type_1"])
def test_default_task_type_needs_nothing_from_the_user(opened: Opener, name: str) -> None:
    """The native class takes type 0 by default; the conversion put the original's default there."""
    golden = small(name, "basic")
    model = opened(golden, "sdpa")
    (field, expected), *_ = golden.outputs.items()
    assert difference(getattr(run(model, plain(golden)), field), expected) <= PARITY


def test_difference_of_task_type_0_where_it_is_not_the_default(opened: Opener) -> None:
    golden = small("features_task_type_2", "task_types")
    model = opened(golden, "sdpa")
    types, expected = golden.inputs["task_type_ids"], golden.outputs["last_hidden_state"]
    assert (types == 0).any()
    assert difference(run(model, golden.inputs).last_hidden_state, expected) > DIFFERS
    moved = torch.where(types == 0, model.config.task_type_vocab_size - 1, types)
    assert difference(run(model, golden.inputs | {"task_type_ids": moved}).last_hidden_state, expected) <= PARITY


def test_bug_of_the_host_multiple_choice_does_not_flatten_task_types(opened: Opener) -> None:
    """Documented in docs; the day this fails, the host has mended it."""
    golden = small("multiple_choice", "pad_mask2d")
    model = opened(golden, "sdpa")
    types = torch.zeros_like(golden.inputs["input_ids"])
    with pytest.raises(RuntimeError):
        run(model, golden.inputs | {"task_type_ids": types})
    flat = run(model, golden.inputs | {"task_type_ids": types.flatten(0, 1)})
    assert difference(flat.logits, golden.outputs["logits"]) <= PARITY


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real vocabulary and ../shared/goldens/ernie/e2e")
def test_fill_mask_from_text(converted: Callable[[Path], Path]) -> None:
    """Text in, PaddleNLP's ids, logits and five best words out, through the host's pipeline."""
    folder = SHARED / "e2e" / "mlm_real_vocab"
    fill = pipeline("fill-mask", model=str(converted(folder)), top_k=5)
    rows = json.loads((folder / "golden_fill_mask.json").read_text())
    logits = np.load(folder / "golden_fill_mask.npz")
    for number, row in enumerate(rows):
        inputs = fill.tokenizer(row["text"], return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == row["input_ids"]
        assert inputs["token_type_ids"][0].tolist() == row["token_type_ids"]
        at_masks = run(fill.model, dict(inputs)).logits[0, row["mask_positions"]]
        expected = torch.tensor(logits[f"logits_at_masks.{number}"])  # after the first text, every 40th word only
        assert (
            difference(at_masks if expected.shape == at_masks.shape else at_masks[:, ::40], expected) <= PARITY_LOGITS
        )
        answers = fill(row["text"])
        answers = answers if isinstance(answers[0], list) else [answers]
        assert [[answer["token"] for answer in mask] for mask in answers] == row["top5_ids"]
        assert [[answer["token_str"] for answer in mask] for mask in answers] == row["top5_tokens"]


@pytest.mark.skipif(not SHARED_GOLDENS, reason="needs the caches' outputs in ../shared/goldens/ernie/models")
@pytest.mark.parametrize(
    "golden", [golden for golden in SHARED_GOLDENS if golden.name in NO_COUNTERPART], ids=lambda golden: golden.id
)
def test_difference_of_the_cache(converted: Callable[[Path], Path], golden: Golden) -> None:
    """PaddleNLP's encoder can keep keys and values; transformers' only as a decoder, told that nothing is masked."""
    folder = converted(golden.folder)
    config = AutoConfig.from_pretrained(folder, is_decoder=True)
    decoder = AUTO_CLASSES[golden.original_class].from_pretrained(folder, config=config).eval()
    first, second = golden.arrays["in.input_ids_first"], golden.arrays["in.input_ids_second"]
    length = first.shape[1]

    def visible(rows: int, columns: int) -> torch.Tensor:
        return torch.zeros(first.shape[0], 1, rows, columns)

    start = run(decoder, {"input_ids": first, "attention_mask": visible(length, length)}, use_cache=True)
    rest = run(
        decoder,
        {"input_ids": second, "attention_mask": visible(second.shape[1], length + second.shape[1])},
        past_key_values=start.past_key_values,
    )
    assert difference(start.last_hidden_state, golden.arrays["out.first.last_hidden_state"]) <= PARITY
    expected = golden.arrays["out.second.last_hidden_state"]
    assert difference(rest.last_hidden_state, expected) <= PARITY
