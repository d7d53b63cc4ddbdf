"""Writes tests/golden/ernie_small: tiny random ERNIE checkpoints and PaddleNLP's outputs for them.

Runs with the original, not with this package, in an environment of its own: Python 3.11, paddlenlp 2.8.1, paddlepaddle
2.6.2, huggingface-hub 0.23.5, numpy 1.26.4, datasets 2.19.2, aistudio-sdk 0.2.6, pyarrow 17.0.0. The format is that of
../shared/goldens/ernie: `in.*` the arguments, `out.*` the outputs by field, or `out.output.N`.
"""

import zlib

zlib.crc32(b"")  # before paddle brings its own

import json  # noqa: E402
import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddlenlp.transformers import (  # noqa: E402
    UIE,
    UTC,
    ErnieConfig,
    ErnieForMaskedLM,
    ErnieForMultipleChoice,
    ErnieForPretraining,
    ErnieForQuestionAnswering,
    ErnieForSequenceClassification,
    ErnieForTokenClassification,
    ErnieModel,
)

OUTPUT = Path(__file__).parent / "ernie_small"
SIZES = {
    "vocab_size": 96,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 4,
    "task_type_vocab_size": 3,
    "use_task_id": True,
}
CASES = {
    "features": (ErnieModel, {}),
    "features_task_type_2": (ErnieModel, {"task_id": 2}),
    "masked_lm": (ErnieForMaskedLM, {}),
    "masked_lm_task_type_1": (ErnieForMaskedLM, {"task_id": 1}),
    "pretraining_relu": (ErnieForPretraining, {"hidden_act": "relu", "use_task_id": False}),
    "sequence_classification": (ErnieForSequenceClassification, {"num_classes": 3}),
    "token_classification_pad_1": (ErnieForTokenClassification, {"num_classes": 5, "pad_token_id": 1}),
    "question_answering": (ErnieForQuestionAnswering, {}),
    "multiple_choice": (ErnieForMultipleChoice, {"num_choices": 2}),
    "uie_task_type_1": (UIE, {"task_id": 1}),
    "utc": (UTC, {}),
}


def main() -> None:
    """Writes every case."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    for seed, (name, (model_class, settings)) in enumerate(CASES.items()):
        paddle.seed(seed)
        random = np.random.default_rng(seed)
        model = model_class(ErnieConfig(**{**SIZES, **settings}))
        model.eval()
        # Small weights show the epsilon of LayerNorm in the outputs, large ones everything else.
        scale = 0.02 if seed % 2 else 0.2
        for parameter_name, parameter in model.named_parameters():
            middle = 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0
            parameter.set_value(random.normal(middle, scale, parameter.shape).astype("float32"))
        folder = OUTPUT / name
        model.save_pretrained(str(folder))
        config = json.loads((folder / "config.json").read_text())
        config.pop("paddlenlp_version", None)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "case.json").write_text(json.dumps({"class": model_class.__name__}) + "\n")
        for case, arguments in inputs(name, model.config, random).items():
            run(model, folder / f"golden_{case}.npz", arguments)


def inputs(name, config, random):
    """Arguments of each golden of a case."""
    choices = (2,) if "choice" in name else ()
    shape = (2, *choices, 12)
    pad = config.pad_token_id
    ids = random.integers(4, config.vocab_size, shape)
    padded = ids.copy()
    padded[0, ..., 9:] = pad
    common = {"input_ids": padded, "token_type_ids": random.integers(0, config.type_vocab_size, shape)}
    if name == "utc":
        common |= {
            "position_ids": np.tile(np.arange(12), (2, 1)),
            "omask_positions": np.array([[2, 4, 6], [1, 3, 0]]),
            "cls_positions": np.array([0, 0]),
        }
    cases = {"pad_mask2d": {**common, "attention_mask": (padded != pad).astype("int64")}}
    if name != "utc":
        cases["basic"] = {"input_ids": ids}
    if not choices and name != "utc":
        cases["pad_auto_mask"] = common
        cases["pad_mask_all_ones"] = {"input_ids": padded, "attention_mask": np.ones(shape, "int64")}
    if name.startswith("features"):
        cases["task_types"] = {"input_ids": ids, "task_type_ids": random.integers(0, 3, shape)}
    return cases


def run(model, path, arguments) -> None:
    """Runs one golden and writes it."""
    arrays = {f"in.{key}": value for key, value in arguments.items()}
    with paddle.no_grad():
        output = model(**{key: paddle.to_tensor(value) for key, value in arguments.items()})
    outputs = output if isinstance(output, tuple) else (output,)
    for number, value in enumerate(outputs):
        arrays["out.output" if len(outputs) == 1 else f"out.output.{number}"] = value.numpy()
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
