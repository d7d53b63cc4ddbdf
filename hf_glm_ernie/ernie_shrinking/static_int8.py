"""Post-training static INT8 of an exported encoder: ranges are measured once, on rows of the task.

Dynamic quantization (`onnx_export.save_int8`) takes the range of every activation while it runs; here onnxruntime's
own calibration runs the fp32 graph on some rows and writes the ranges into the file, as QDQ nodes around the products
with weights. Weights have a scale for each column, activations one for each tensor, unsigned. Products of two
activations (scores and contexts of the attention) stay in fp32, and so do embeddings, which may be integers already.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_glm_ernie.ernie_tasks.onnx_export import graph_to_quantize, without_preprocessing_advice

METHODS = ("minmax", "percentile", "entropy")
"""How a range follows from what was seen: all of it, all but the rarest values, by least divergence."""
QUANTIZED = ("MatMul", "Gemm")


def save_static_int8(
    path: Path, quantized: Path, batches: Iterable[Mapping[str, torch.Tensor]], method: str = "minmax"
) -> None:
    """Writes an ONNX file again, with INT8 weights and fixed ranges of activations.

    Args:
        path: The fp32 file.
        quantized: Where to write.
        batches: Inputs to measure ranges on, by name; what the graph does not take is left out.
        method: One of `METHODS`.

    Raises:
        ImportError: onnxruntime or onnx is not installed (the extra `onnx`).
        ValueError: another method, or no batch.
    """
    if method not in METHODS:
        raise ValueError(f"calibration={method!r} is not one of {', '.join(METHODS)}.")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = graph_to_quantize(path)
    reader = _reader(batches, [one.name for one in model.graph.input])
    with without_preprocessing_advice():
        quantize_static(
            model,
            quantized,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method={
                "minmax": CalibrationMethod.MinMax,
                "percentile": CalibrationMethod.Percentile,
                "entropy": CalibrationMethod.Entropy,
            }[method],
            extra_options={"MatMulConstBOnly": True},
        )


def _reader(batches: Iterable[Mapping[str, torch.Tensor]], names: list[str]) -> Any:
    """The batches as onnxruntime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self, rows: Iterator[Mapping[str, torch.Tensor]], first: Mapping[str, torch.Tensor] | None):
            self.rows, self.first = rows, first

        def get_next(self) -> dict[str, Any] | None:
            batch, self.first = self.first, None
            if batch is None:
                batch = next(self.rows, None)
            return None if batch is None else {name: batch[name].numpy() for name in names}

    rows = iter(batches)
    first = next(rows, None)
    if first is None:
        raise ValueError("There are no rows to measure the ranges of activations on.")
    return Reader(rows, first)


__all__ = ["METHODS", "save_static_int8"]
