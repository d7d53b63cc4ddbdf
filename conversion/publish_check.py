"""Opens a repository folder as a stranger's process would and reports what it sees; run by `publish`, by its path.

`python -P publish_check.py REQUEST.json`: the packages the request names are hidden from the process, the folder is
opened, a report is written. The same functions, called where the package is installed, give what to compare with.
So this file imports nothing of the project, and the host only inside functions, after the hiding.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FULL, STRUCTURE = "full", "structure"
"""Kinds of check: weights loaded and computed with; or names, shapes and dtypes against the files' headers."""


def hide(names: Sequence[str]) -> None:
    """Makes this process blind to top-level modules, as if they were not installed; none may be imported yet.

    Raises:
        RuntimeError: one is imported already.
    """
    imported = sorted(name for name in names if name in sys.modules)
    if imported:
        raise RuntimeError(f"{', '.join(imported)} is imported already, so this process cannot do without.")
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None stands for what cannot be imported


def observe(request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Opens a folder.

    Args:
        request: `folder`; `auto_class`; `trust_remote_code`; `mode` (`FULL` or `STRUCTURE`); `inputs` for `forward`;
            `texts` for the tokenizer, empty where there is none; `generate`, a number of tokens; `sizes_first`,
            whether names and shapes are compared before anything is loaded.

    Returns:
        What was seen: versions, classes and where they come from, ids of the texts, quantized linears, generated ids.
        And the output tensors by name, in float32; none for `STRUCTURE`.

    Raises:
        ValueError: a tensor of the files is missing, of another shape, or not a number.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    trust = {"trust_remote_code": True} if request["trust_remote_code"] else {}
    auto_class = getattr(transformers, request["auto_class"])
    report: dict[str, Any] = {"transformers": transformers.__version__, "torch": torch.__version__}
    if request["texts"]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(request["folder"], **trust)
        report["tokenizer"] = f"{type(tokenizer).__module__}.{type(tokenizer).__name__}"
        report["ids"] = [tokenizer(text)["input_ids"] for text in request["texts"]]
        report["decoded"] = [tokenizer.decode(ids) for ids in report["ids"]]
    config = transformers.AutoConfig.from_pretrained(request["folder"], **trust)
    report["config"] = f"{type(config).__module__}.{type(config).__name__}"
    outputs: dict[str, Any] = {}
    if request["mode"] == FULL:
        if request.get("sizes_first"):  # what the files lack would be made, in whatever size the settings say
            _compared(_skeleton(auto_class, config, trust), Path(request["folder"]))
        model, loading = auto_class.from_pretrained(request["folder"], output_loading_info=True, **trust)
        lacking = sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"])))
        if lacking:
            raise ValueError(
                f"{request['folder']}: the files lack {', '.join(lacking[:5])}; saved from another class?"
            )
        outputs, generated = _computed(model.eval(), request)
        report |= generated
    else:
        model = _skeleton(auto_class, config, trust)
        report["tensors"] = _compared(model, Path(request["folder"]))
    report["class"] = f"{type(model).__module__}.{type(model).__name__}"
    report["quantized_linears"] = sum(type(module).__name__ == "WeightOnlyLinear" for module in model.modules())
    return report, outputs


def _computed(model: Any, request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the model once, and generates; the output tensors, and what was generated."""
    import torch

    inputs = {name: torch.tensor(values) for name, values in request["inputs"].items()}
    with torch.no_grad():
        outputs = model(**inputs)
    tensors = {name: value.float().contiguous() for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    broken = sorted(name for name, value in tensors.items() if not torch.isfinite(value).all())
    if broken or not tensors:
        raise ValueError(f"{request['folder']}: {', '.join(broken) or 'no output'} of the model is not finite.")
    if not request["generate"]:
        return tensors, {}
    length = inputs["input_ids"].shape[1]
    made = model.generate(
        inputs["input_ids"],
        max_new_tokens=request["generate"],
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    margins = []  # by how much a token was ahead of the next, of the largest logit
    for logits in made.logits:
        best = logits[0].float().topk(2).values
        margins.append(float((best[0] - best[1]) / logits[0].float().abs().max().clamp_min(1e-6)))
    return tensors, {"generated": made.sequences[0, length:].tolist(), "margins": margins}


def _skeleton(auto_class: Any, config: Any, trust: dict[str, bool]) -> Any:
    """The model on `meta`, its linears quantized where the config says so."""
    import torch
    from transformers.quantizers.auto import AutoHfQuantizer

    with torch.device("meta"):
        model = auto_class.from_config(config, **trust)
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        AutoHfQuantizer.from_config(settings, pre_quantized=True).preprocess_model(model=model)
    return model


def _compared(model: Any, folder: Path) -> int:
    """Holds names, shapes and kinds of number in the files against a model's; the number of tensors that agree."""
    import torch
    from safetensors import safe_open

    stored: dict[str, tuple[tuple[int, ...], bool]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is not a mapping
                part = file.get_slice(name)
                stored[name] = (tuple(part.get_shape()), part.get_dtype() in ("I8", "U8"))
    prefix = f"{model.base_model_prefix}."
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    persistent = model.state_dict()
    for name, tensor in persistent.items():
        held = stored.get(name) or stored.get(prefix + name) or stored.get(name.removeprefix(prefix))
        if held is None and name not in tied:
            raise ValueError(f"{folder}: the model has {name}, which no file holds.")
        expected = (tuple(tensor.shape), tensor.dtype in (torch.int8, torch.uint8))
        if held is not None and held != expected:
            raise ValueError(f"{folder}: {name} is {held} in the files (shape, is integers), {expected} in the model.")
    return len(persistent)


def main(path: str) -> int:
    """Hides, observes, writes the report to `report` and the tensors to `outputs`; returns the exit status."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    hide(request["hidden"])
    report, outputs = observe(request)
    imported = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
    if seen := sorted(imported & set(request["hidden"])):
        raise RuntimeError(f"The repository's code imported {', '.join(seen)}, which others do not have.")
    if outputs:
        from safetensors.torch import save_file

        save_file(outputs, request["outputs"])
    Path(request["report"]).write_text(json.dumps(report), encoding="utf-8")
    return 0


def _end_with_parent() -> None:
    """Waits for the end of stdin, which whoever asked holds open as long as it lives, and ends this process."""
    while os.read(0, 1):  # not by `sys.stdin`, whose lock an orderly end of the process would miss
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
