"""Exports a converted encoder with `torch.export` and to ONNX, and checks both against the model.

    python examples/export_ernie.py --model demo-output/sample-ernie/uie --output demo-output/uie-exported --int8

Every class the ERNIE converter writes works: encoders, masked language models, classifiers, UIE, UTC. Batch and length
are dynamic, weights are fp32. `model.pt2` needs torch alone to run, `model.onnx` any ONNX runtime; `config.json` and
the tokenizer lie beside them, so that `hf_glm_ernie.OnnxEncoder` opens the folder and `uie`, `utc` and
`sentence_embeddings` take it for the model. Exit status 0: the exported files give the model's numbers on shapes other
than the traced one, with padding.

`--int8` adds `model_int8.onnx`, onnxruntime's dynamic quantization: weights of matrix products in INT8 with a scale
for each column, embeddings with one for the table, what stands between in fp32, its INT8 scale taken at run time. A
quarter of the bytes, and not the model's numbers: the largest difference is printed, and what it means is for the task
to say (docs/ernie.md).
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, ErnieConfig, PreTrainedModel

import hf_glm_ernie  # registers UIE and UTC with the Auto classes
from hf_glm_ernie.ernie_tasks.exported import INT8_FILE, ONNX_FILE, TORCH_FILE
from hf_glm_ernie.ernie_tasks.onnx_export import (
    Exported,
    random_inputs,
    save_int8,
    save_onnx,
    trace,
    write_config,
)

FORMATS = {"torch-export": TORCH_FILE, "onnx": ONNX_FILE}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_BYTES = 2**31 - 2**26
"""What the weights in one ONNX file may take (protobuf ends at 2 GiB), with room for the graph."""
# Other shapes than the traced one. One text is a case of its own: tracing likes to take a size of 1 as a constant.
CHECKED = ((1, 9), (5, 33))
# fp32 sums in another order; relative to the largest value, at least 1.
TOLERANCE = 1e-5


def main(arguments: list[str] | None = None) -> int:
    """Exports a model.

    Args:
        arguments: The command line; `None` reads that of the process.

    Returns:
        The exit status: 0 where every exported file agrees with the model, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="converted folder")
    parser.add_argument("--output", type=Path, required=True, help="folder to be made; must not exist")
    parser.add_argument("--format", choices=(*FORMATS, "both"), default="both", help="default: %(default)s")
    parser.add_argument(
        "--encoder", action="store_true", help="leave the head out: hidden states and what the pooler makes of them"
    )
    parser.add_argument("--int8", action="store_true", help="write a dynamically quantized ONNX file as well")
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        help="INT8 weights of 7 bits, for processors without VNNI, where sums of 8-bit products can overflow",
    )
    options = parser.parse_args(arguments)
    formats = list(FORMATS) if options.format == "both" else [options.format]
    if "onnx" in formats:
        require_onnx()
    elif options.int8:
        raise SystemExit("--int8 quantizes the ONNX file: take --format onnx or both.")
    if options.reduce_range and not options.int8:
        raise SystemExit("--reduce-range says how INT8 weights are made: pass --int8 as well.")
    if options.output.exists():
        raise SystemExit(f"--output {options.output} exists already. Name a new folder, or remove that one.")
    model = open_model(options.model, options.encoder)
    print(f"{type(model).__name__}: {model.num_parameters():,} parameters", flush=True)
    if "onnx" in formats:
        refuse_what_one_file_cannot_hold(model)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    # Nothing half-written stays where the folder is to be.
    with tempfile.TemporaryDirectory(dir=options.output.parent, prefix=f".{options.output.name}-") as unfinished:
        folder = Path(unfinished) / "folder"
        folder.mkdir()
        write_what_lies_beside(model, options.model, folder)
        agree = True
        for file, run in export(model, folder, formats, options.int8, options.reduce_range):
            print(f"\n{options.output / file}: {(folder / file).stat().st_size / 2**20:.1f} MiB")
            agree &= report(model, run, None if file == INT8_FILE else TOLERANCE)
        folder.rename(options.output)
    print("\nagrees with the model" if agree else f"\nDIFFERS from the model by more than {TOLERANCE:g}")
    return 0 if agree else 1


def export(
    model: PreTrainedModel, folder: Path, formats: list[str], int8: bool, reduce_range: bool
) -> Iterator[tuple[str, Exported]]:
    """Writes the files one by one. Yields the name of each, and the file as it runs."""
    program = trace(model)
    if "torch-export" in formats:
        yield TORCH_FILE, save_torch(program, folder / TORCH_FILE)
    if "onnx" in formats:
        yield ONNX_FILE, save_onnx(program, model, folder / ONNX_FILE)
    if int8:
        yield INT8_FILE, save_int8(folder / ONNX_FILE, folder / INT8_FILE, reduce_range)


def report(model: PreTrainedModel, run: Exported, tolerance: float | None) -> bool:
    """Prints how far an exported file is from the model.

    Args:
        model: The model.
        run: The file as it runs.
        tolerance: How far it may be; `None`: any distance that is a number.

    Returns:
        Whether it is no further.
    """
    agree = True
    for shape in CHECKED:
        found = differences(model, run, shape)
        agree &= all(value <= (float("inf") if tolerance is None else tolerance) for value in found.values())
        listed = ", ".join(f"{output} {value:.1e}" for output, value in found.items())
        print(f"  {shape[0]} x {shape[1]} tokens: largest difference from the model: {listed}", flush=True)
    return agree


def write_what_lies_beside(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """Writes the config, which names the class that was exported, and the tokenizer, where the model has one."""
    write_config(model, folder)
    if (source / "tokenizer_config.json").is_file():
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    else:
        print(f"{source} holds no tokenizer_config.json: the exported folder has no tokenizer.")


def require_onnx() -> None:
    """Stops where a package of ONNX is missing.

    Raises:
        SystemExit: it says which, and how to get it.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"ONNX export needs {' and '.join(missing)}, not installed here: pip install 'hf-glm-ernie[onnx]'. "
            "--format torch-export does without."
        )


def open_model(folder: Path, without_head: bool = False) -> PreTrainedModel:
    """Opens a converted folder in fp32, as the class its config names.

    Args:
        folder: Converted folder.
        without_head: Whether to open the encoder alone.

    Raises:
        SystemExit: no folder of an ERNIE encoder.
    """
    if not (folder / "config.json").is_file():
        raise SystemExit(
            f"--model {folder} holds no config.json: give a folder that `python -m conversion ernie` wrote."
        )
    config = AutoConfig.from_pretrained(folder)
    name = "ErnieModel" if without_head else (config.architectures or [""])[0]
    model_class = getattr(transformers, name, None) or getattr(hf_glm_ernie, name, None)
    if not isinstance(config, ErnieConfig) or model_class is None:
        raise SystemExit(
            f"--model {folder}: model type {config.model_type!r}, class {name!r}; this exports the ERNIE encoders of "
            "`python -m conversion ernie`."
        )
    return model_class.from_pretrained(folder, dtype=torch.float32).eval()


def refuse_what_one_file_cannot_hold(model: PreTrainedModel) -> None:
    """Stops where the weights are more than an ONNX file takes: before anything is traced.

    Raises:
        SystemExit: it says how many bytes they are.
    """
    size = sum(one.numel() * one.element_size() for one in model.state_dict().values())
    if size > ONNX_BYTES:
        raise SystemExit(
            f"The weights take {size:,} bytes in fp32, and one ONNX file holds {ONNX_BYTES:,}. --format torch-export "
            "has no such limit."
        )


def save_torch(program: torch.export.ExportedProgram, path: Path) -> Exported:
    """Writes a .pt2 file. Returns the model that it holds, read back."""
    torch.export.save(program, path)
    return torch.export.load(path).module()


def differences(model: PreTrainedModel, exported: Exported, shape: tuple[int, int]) -> dict[str, float]:
    """Runs both on the same made-up inputs.

    Returns:
        For every output the largest difference, relative to its largest value where that is above 1.
    """
    inputs = random_inputs(model, *shape)
    with torch.no_grad():
        expected = dict(model(**inputs).items())
        found = exported(**inputs)
    if list(found) != list(expected):
        raise RuntimeError(f"The exported file gives {list(found)}, the model {list(expected)}.")
    return {
        name: (found[name] - value).abs().max().item() / max(1.0, value.abs().max().item())
        for name, value in expected.items()
    }


if __name__ == "__main__":
    sys.exit(main())
