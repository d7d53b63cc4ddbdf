"""The attention with relative positions and the memory, against the only public program that has both: ERNIE-Doc.

Every case's segments run in order on this package's attention module and memory functions; `reference/ernie_doc.py`
is the rest of the original. Each segment starts from the memories computed here for the one before.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conversion.paddle_pickle import open_pdparams
from hf_glm_ernie.attention_ernie3 import relative_rows

from .conftest import GOLDEN
from .reference.ernie_doc import ErnieDoc

SMALL = GOLDEN / "ernie_doc_small"
SHARED = Path(__file__).parents[2] / "shared" / "goldens" / "ernie" / "ernie_doc"
# The project's bounds for parity; pre-norm streams are not normalised, so their numbers are larger.
PARITY, PARITY_PRE_NORM = 2e-5, 1e-4
BACKBONE = ("encoder_output", "out0"), ("pooled_output", "out1")


def cases(root: Path) -> list[tuple[Path, str]]:
    """Every golden under a folder: its case and its name."""
    return [
        (folder.parent, path.stem.removeprefix("golden_"))
        for folder in sorted(root.glob("*/case.json"))
        for path in sorted(folder.parent.glob("golden_*.npz"))
    ]


@cache
def opened(folder: Path, implementation: str) -> tuple[ErnieDoc, str]:
    """The checkpoint of a case, and the original's class."""
    case = json.loads((folder / "case.json").read_text())
    stored = folder / "config.json"
    settings = (json.loads(stored.read_text()) if stored.exists() else {}) | case["config_args"]
    if (folder / "weights.npz").exists():
        weights = {name: torch.tensor(array) for name, array in np.load(folder / "weights.npz").items()}
    else:
        file = open_pdparams(folder / "model_state.pdparams")
        weights = {name: file.tensor(name).clone() for name in file.tensors}
    return ErnieDoc(settings, weights, implementation), case["class"]


def segments(arrays: dict[str, torch.Tensor]) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Inputs and outputs of each segment, by their names in the file without the segment's."""
    named = any(name.startswith("in.seg0.") for name in arrays)
    number = 0
    while not named or f"in.seg{number}.input_ids" in arrays:
        middle = f"seg{number}." if named else ""
        parts = [
            {
                name.removeprefix(f"{kind}.{middle}"): value
                for name, value in arrays.items()
                if name.startswith(f"{kind}.{middle}")
            }
            for kind in ("in", "out")
        ]
        yield parts[0], parts[1]
        number += 1
        if not named:
            return


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return (found - expected).abs().max().item() if found.numel() else 0.0


def of_real_tokens(values: torch.Tensor, name: str, mask: torch.Tensor, model: ErnieDoc) -> torch.Tensor:
    """The part of an output that belongs to tokens which are not padding; `mask` is (B, T)."""
    real = mask.bool()
    if name == "new_mem":
        memory = model.settings["memory_len"]
        return values[:, F.pad(real, (memory, 0), value=True)[:, -memory:]]
    if values.shape[:2] == real.shape:
        return values[real]
    return values[real[:, model.settings.get("cls_token_idx", -1)]]


def outputs_of(model: ErnieDoc, original_class: str, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the original's class returns for a segment, under both of the names goldens use."""
    if original_class == "ErnieDocModel":
        both = hidden, model.pool(hidden)
        return {name: value for names, value in zip(BACKBONE, both, strict=True) for name in names}
    if original_class == "ErnieDocForSequenceClassification":
        logits = model.head(model.pool(hidden))
        return {"logits": logits, "out0": logits}
    logits = model.head(hidden)
    if original_class == "ErnieDocForTokenClassification":
        return {"logits": logits, "out0": logits}
    assert original_class == "ErnieDocForQuestionAnswering"
    start, end = logits.unbind(-1)
    return {"start_logits": start, "out0": start, "end_logits": end, "out1": end}


@torch.no_grad()
def check(folder: Path, name: str, implementation: str) -> dict[str, float]:
    """Largest difference of each output over all segments."""
    model, original_class = opened(folder, implementation)
    arrays = {key: torch.tensor(value) for key, value in np.load(folder / f"golden_{name}.npz").items()}
    memories = arrays["in.initial_memory"] if "in.initial_memory" in arrays else arrays["in.memories"]
    worst: dict[str, float] = {}
    for inputs, expected in segments(arrays):
        ids, types, mask = (inputs[key].squeeze(-1) for key in ("input_ids", "token_type_ids", "attn_mask"))
        length, memory = ids.shape[1], model.settings["memory_len"]
        distances = torch.arange(memory + length, -length, -1)  # as the original's table of positions is laid out
        rows = relative_rows(distances, length, 2 * length + memory)
        assert torch.equal(rows.expand(len(ids), -1), inputs["position_ids"].squeeze(-1))
        hidden, memories = model(ids, types, mask, memories)
        found = {"new_mem": memories}
        if expected.keys() - {"new_mem"}:
            found |= outputs_of(model, original_class, hidden)
        assert expected.keys() <= found.keys(), expected.keys()
        for key, value in expected.items():
            pair: tuple[torch.Tensor, ...] = found[key], value
            if implementation != "eager" and not mask.all():
                # Padding sees nothing: -1e8 on all its scores, whose last digits are then its output. A kernel that
                # adds bias and mask before the product has others.
                pair = tuple(of_real_tokens(part, key, mask, model) for part in pair)
            worst[key] = max(worst.get(key, 0.0), apart(*pair))
        if implementation != "eager" and not mask.all():
            memories = expected["new_mem"]
    bound = PARITY_PRE_NORM if model.settings.get("normalize_before") else PARITY
    assert max(worst.values()) <= bound, worst
    return worst


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("folder", "name"), cases(SMALL), ids=lambda part: getattr(part, "name", part))
def test_first_layer(folder: Path, name: str, implementation: str) -> None:
    """The copy in the repository: one layer, memory longer than a segment, three segments."""
    assert "new_mem" in check(folder, name, implementation)


@pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="needs the full golden sets beside the repository (../shared/goldens/ernie/ernie_doc); the copy ran",
)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("folder", "name"), cases(SHARED), ids=lambda part: getattr(part, "name", part))
def test_every_golden(folder: Path, name: str, implementation: str) -> None:
    check(folder, name, implementation)


def test_the_copy_is_there() -> None:
    assert len(cases(SMALL)) == 4


@pytest.mark.parametrize("part", ["r_w_bias", "r_r_bias", "r_t_bias", "r_proj.weight", "t_proj.weight"])
def test_every_term_counts(part: str) -> None:
    """Without one of the terms the copy is missed by far, so no term can be forgotten unseen."""
    folder, name = cases(SMALL)[0]
    model, _ = opened(folder, "eager")
    parameter = model.attention[0].get_parameter(part)
    kept = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.zero_()
        with pytest.raises(AssertionError):
            check(folder, name, "eager")
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
