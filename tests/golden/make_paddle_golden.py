"""Makes `paddle_files/`: little checkpoints in every format, written by Paddle itself, and the values it was given.

    pip install paddlepaddle==2.6.2 numpy==1.26.4   # in an environment of its own
    python tests/golden/make_paddle_golden.py

`state_pN.pdparams` are state dicts in pickle protocol N; `sliced_pN` are the same with the limit above which Paddle
cuts tensors into slices set from 1 GiB to 64 bytes; `mixed` has other things beside tensors, `mixed_static` does so
in static mode. `variables/` is one file for each variable, `combined/` the same in one with its program, `inference/`
is what `save_inference_model` makes, `jit/` what `paddle.jit.save` makes of a layer. `values.npz` holds every tensor
by (folder or kind, name); bfloat16 as its 16 bits.
"""

import inspect
import shutil
import zlib
from pathlib import Path

import numpy as np

zlib.crc32(b"")  # before Paddle, whose own copy of zlib would answer otherwise
import paddle  # noqa: E402
from paddle import static  # noqa: E402
from paddle.framework import io, io_utils  # noqa: E402

TARGET = Path(__file__).parent / "paddle_files"
values: dict[str, np.ndarray] = {}


def state_dict() -> dict[str, paddle.Tensor]:
    """Tensors of every dtype and rank."""
    random = np.random.default_rng(7)
    return {
        "ernie.embeddings.word_embeddings.weight": paddle.to_tensor(random.standard_normal((12, 8)).astype("float32")),
        "half": paddle.to_tensor(random.standard_normal((5, 3)).astype("float16")),
        "bfloat": paddle.to_tensor(random.standard_normal((4, 6)).astype("float32")).astype("bfloat16"),
        "double": paddle.to_tensor(random.standard_normal((3,))),
        "long": paddle.to_tensor(random.integers(-(2**40), 2**40, (2, 3))),
        "byte": paddle.to_tensor(np.arange(256, dtype="uint8")),
        "truth": paddle.to_tensor([True, False, True]),
        "scalar": paddle.to_tensor(1.5),
        "transposed": paddle.to_tensor(random.standard_normal((3, 4)).astype("float32")).t(),
        "名字": paddle.to_tensor([1.0, 2.0]),
    }


def note(kind: str, tensors: dict[str, object]) -> None:
    """Keeps the values of a file's tensors."""
    for name, tensor in tensors.items():
        values[f"{kind}|{name}"] = np.array(tensor)


def pickles() -> None:
    """What `paddle.save` writes in dynamic mode."""
    state = state_dict()
    for protocol in (2, 3, 4):
        paddle.save(state, str(TARGET / f"state_p{protocol}.pdparams"), protocol=protocol)
        note(f"state_p{protocol}", state)
    paddle.save({**state, "epoch": 3, "lr": 0.5, "note": "text", "none": None}, str(TARGET / "mixed.pdparams"))
    note("mixed", state)
    original = io_utils._unpack_saved_dict
    scope = dict(vars(io_utils))
    exec(inspect.getsource(original).replace("2**30 - 1", "64"), scope)
    io._unpack_saved_dict = scope["_unpack_saved_dict"]
    for protocol in (2, 3):
        paddle.save(dict(state), str(TARGET / f"sliced_p{protocol}.pdparams"), protocol=protocol)
        note(f"sliced_p{protocol}", state)
    io._unpack_saved_dict = original
    paddle.save(state["half"], str(TARGET / "single.pdtensor"))


class Layer(paddle.nn.Layer):
    """An embedding, a linear layer and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = paddle.nn.Embedding(6, 4)
        self.classifier = paddle.nn.Linear(4, 3)
        self.register_buffer("position_ids", paddle.arange(5))

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        return self.classifier(self.embedding(ids)) + self.position_ids[:3].astype("float32")


def jit() -> None:
    """A layer with its program and the names of its parameters."""
    layer = Layer()
    layer.eval()
    paddle.jit.save(layer, str(TARGET / "jit/model"), input_spec=[static.InputSpec([None, 3], "int64")])
    note("jit", layer.state_dict())


def static_graph() -> None:
    """Variables in single files, in one file with a program, and of an inference model."""
    paddle.enable_static()
    main, start = static.Program(), static.Program()
    random = np.random.default_rng(8)
    shapes = {
        "word_embedding": [6, 4],
        "encoder_layer_0_fc.w_0": [4, 3],
        "encoder_layer_0_fc.b_0": [3],
        "scope/w": [3, 2],
    }
    with static.program_guard(main, start):
        ids = static.data("ids", [None, 4], "float32")
        made = {name: paddle.create_parameter(shape, "float32", name=name) for name, shape in shapes.items()}
        hidden = paddle.matmul(ids, made["encoder_layer_0_fc.w_0"]) + made["encoder_layer_0_fc.b_0"]
        out = paddle.matmul(hidden, made["scope/w"]) + paddle.sum(made["word_embedding"])
    executor = static.Executor(paddle.CPUPlace())
    executor.run(start)
    given = {name: random.standard_normal(shape).astype("float32") for name, shape in shapes.items()}
    for name, array in given.items():
        static.global_scope().find_var(name).get_tensor().set(array, paddle.CPUPlace())
    static.io.save_vars(executor, str(TARGET / "variables"), main_program=main, predicate=lambda v: v.persistable)
    static.io.save_vars(
        executor, str(TARGET / "combined"), main_program=main, predicate=lambda v: v.persistable, filename="__params__"
    )
    for folder in ("variables", "combined"):
        (TARGET / folder / "__model__").write_bytes(main.desc.serialize_to_string())
        note(folder, given)
    static.save_inference_model(str(TARGET / "inference/model"), [ids], [out], executor, program=main)
    note("inference", given)
    static.save(main, str(TARGET / "saved/model"))
    note("saved", given)
    paddle.save({**main.state_dict("param"), "epoch": 3}, str(TARGET / "mixed_static.pdparams"))
    note("mixed_static", given)


def single_dtypes() -> None:
    """One file for each dtype, as an old program would have written them."""
    folder = TARGET / "dtypes"
    folder.mkdir()
    for name, tensor in state_dict().items():
        paddle.save(tensor, str(folder / name), use_binary_format=True)
        # What Paddle itself reads back: it writes a transposed tensor's storage under the new shape.
        note("dtypes", {name: paddle.load(str(folder / name))})


def main() -> None:
    """Writes `paddle_files/`."""
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir()
    paddle.seed(3)
    pickles()
    jit()
    single_dtypes()
    static_graph()
    np.savez_compressed(TARGET / "values.npz", **values)


if __name__ == "__main__":
    main()
