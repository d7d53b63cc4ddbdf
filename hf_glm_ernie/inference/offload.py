"""Layers that a device map keeps in main memory: computed there, or copied ahead of their turn.

Accelerate brings the weights of such layers to the first accelerator for every forward, one after the other, from
memory that is not page-locked, while nothing is computed: 2.5 to 7 s a token for the whole of GLM-130B in INT4. A step
of decoding has one row for each text, and the processor reads the weights from main memory many times as fast as the
link brings them. So [`set_offload`] takes these layers over from Accelerate's hooks:

- `"compute"`: few rows are computed on the CPU, from weights and keys and values that stay there. Only the rows
  themselves go to the accelerator and back. For many rows (a prompt) the weights are copied as below.
- `"copy"`: the weights are copied for every forward, each layer in one piece from page-locked memory, while the layer
  before it is computed.

The layers' own forward does not know; hooks of torch run before and after it. Layers on disk stay with Accelerate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook, remove_hook_from_module
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_glm_ernie.weight_only_kernels import RELEASED

from .crossings import Crossings, given_caches, move_cache_of
from .staged_copies import HostBlock, StagedCopies, is_plain, pinned_bytes, tensors_of

logger = logging.get_logger(__name__)

COMPUTE, COPY = "compute", "copy"
WAYS = (COMPUTE, COPY)

# For the number of rows from which copying is faster than computing where the weights lie: what a server's processor
# computes, multiplications and additions a second, and what PCIe 4.0 x16 brings from page-locked memory, bytes a
# second. Both are assumptions, and the number is an argument.
CPU_OPERATIONS = 1e12
LINK_BYTES = 25e9

CPU = torch.device("cpu")
# Attributes of modules: of one that was taken over, and of the whole model (handles of its hooks).
UNIT, WATCH = "_offloaded_unit", "_offload_handles"
# Arguments whose shape says how many rows a call has, where none is given by position.
ROWS_IN = ("input_ids", "inputs_embeds", "hidden_states", "input")


@dataclass(frozen=True)
class Offload:
    """What [`set_offload`] took over.

    Args:
        way: `"compute"` or `"copy"`.
        main: The device that computes what the CPU does not; `None` where nothing was taken over.
        layers: Names of the layers, in order.
        others: Names of other modules, such as a norm or the output projection.
        rows: With `"compute"` the most rows, of all texts together, that the layers compute on the CPU; else 0.
        pinned_bytes: Page-locked memory, rounded up as torch does.
        staging_bytes: Memory of the two buffers on `main`.
    """

    way: str
    main: torch.device | None
    layers: tuple[str, ...]
    others: tuple[str, ...]
    rows: int
    pinned_bytes: int
    staging_bytes: int


def set_offload(model: nn.Module, way: str, rows: int | None = None, pin: bool = True) -> Offload:
    """Chooses how the layers that a device map keeps in main memory are run.

    To be called after `from_pretrained(..., device_map=...)` and before `get_peft_model`; again to choose otherwise,
    and after adapters have been opened with PEFT's `from_pretrained` or [`load_adapter`], which hand the layers back
    to Accelerate. Saving and `generate` with dynamic and static caches and beams work as before. A forward that
    `torch.compile` compiles is interrupted at these layers; with `fullgraph=True` it is refused by torch.

    Args:
        model: A model that was loaded with a device map; changed in place.
        way: `"compute"`: on the CPU for few rows, and as `"copy"` for many. `"copy"`: on the first accelerator, the
            weights copied there while the layer before is computed.
        rows: With `"compute"`, the most rows (texts times tokens of one forward) that the CPU computes. Default: where
            copying becomes as fast on a processor of 10^12 operations a second behind a link of 25 GB/s, 10 with
            4-bit weights, 20 with 8 bits, 40 with 16.
        pin: Whether the weights are moved to page-locked memory, which an accelerator reads several times as fast.
            Not where there is no accelerator.

    Returns:
        What was taken over. Where nothing lies in main memory (or all does), a warning says so.

    Raises:
        TypeError: no model.
        ValueError: another way; rows below 1, or with `"copy"`; weights that bitsandbytes quantized; adapters that got
            no values because Accelerate had the weights.
        RuntimeError: the system gives no page-locked memory.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, not a model.")
    if way not in WAYS:
        raise ValueError(f"way={way!r} is not one of {', '.join(map(repr, WAYS))}.")
    if rows is not None and (way == COPY or isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise ValueError(f"rows={rows!r}: with way={COMPUTE!r} a whole number of at least 1, else leave it out.")
    units = _take_over(model)
    if not units:
        logger.warning("set_offload: no module of this model is offloaded to main memory, so nothing changes.")
        return Offload(way, None, (), (), 0, 0, 0)
    main = units[0].main
    shared = _Shared(main, units, rows=0 if way == COPY else rows)
    layers = shared.layers
    for unit in units:
        unit.attach(shared, pin and main.type != "cpu")
    shared.watch(model)
    blocks = [unit.block.bytes for unit in layers if unit.block is not None]
    return Offload(
        way,
        main,
        tuple(unit.name for unit in layers),
        tuple(unit.name for unit in units if not unit.numbered),
        shared.rows,
        sum(pinned_bytes(block.nbytes) for block in blocks if block.is_pinned()),
        2 * max((block.nbytes for block in blocks), default=0),
    )


def rows_worth_computing(bytes_per_weight: float) -> int:
    """The most rows that the CPU computes as fast as the weights are copied: `operations * bytes / (2 * link)`.

    Args:
        bytes_per_weight: 0.5 for 4-bit weights, 2 for fp16.

    Returns:
        At least 1; 10 for 4-bit weights, 20 for 8 bits, 40 for 16.
    """
    return max(1, int(CPU_OPERATIONS * bytes_per_weight / (2 * LINK_BYTES)))


def _bytes_per_weight(layer: nn.Module) -> float:
    bits = [getattr(module, "bits", None) for module in layer.modules()]
    sizes = [number / 8 for number in bits if isinstance(number, int)]
    return min(sizes or [tensor.element_size() for tensor in layer.parameters() if tensor.ndim > 1], default=2)


class _Shared:
    """What the modules of one model share: the buffers, what crossed already, and the order of the layers."""

    def __init__(self, main: torch.device, units: list["_Unit"], rows: int | None) -> None:
        self.main = main
        self.layers = [unit for unit in units if unit.numbered]
        first = (self.layers or units)[0].module
        self.rows = rows_worth_computing(_bytes_per_weight(first)) if rows is None else rows
        self.crossings = Crossings()
        self.staged: StagedCopies | None = None

    def watch(self, model: nn.Module) -> None:
        """Lets the first layer's copy begin with the forward of the whole model, and none outlive it."""
        root = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
        for handle in getattr(root, WATCH, ()):
            handle.remove()
        setattr(root, WATCH, _register(root, self._begin, self._end))

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = _rows(args, kwargs)
        if rows is not None and rows > self.rows and not torch.is_grad_enabled():
            self.prefetch(0)

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.staged is not None:
            self.staged.forget()

    def prefetch(self, index: int) -> None:
        """Begins the copy of a layer, where there is one of this number."""
        if index < len(self.layers):
            unit = self.layers[index]
            if unit.block is not None and unit.block.pieces:
                self.buffers().prefetch(unit.block)

    def buffers(self) -> StagedCopies:
        """The two buffers, made when they are first needed."""
        if self.staged is None:
            self.staged = StagedCopies(self.main, max(unit.block.bytes.numel() for unit in self.layers if unit.block))
        return self.staged


class _Unit:
    """A module that lies in main memory: a layer, or another that is called by itself."""

    def __init__(self, name: str, module: nn.Module, main: torch.device) -> None:
        self.name, self.module, self.main = name, module, main
        self.numbered = name.rpartition(".")[2].isdigit()
        indices = [getattr(inner, "layer_idx", None) for inner in module.modules()]
        self.cache_layers = [index for index in indices if isinstance(index, int)]
        self.block: HostBlock | None = None
        self.handles: list[Any] = []
        self.shared: _Shared | None = None
        self.slot: int | None = None
        self.replaced: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        setattr(module, UNIT, self)

    def attach(self, shared: _Shared, pinned: bool) -> None:
        """Takes part from now on; a layer's weights are put into one block."""
        self.shared = shared
        if self.numbered and (self.block is None or not self.block.holds_all_of(self.module, pinned)):
            self.block = HostBlock(self.module, pinned)
        self.detach()
        self.handles = _register(self.module, self._before, self._after)

    def detach(self) -> None:
        """Takes no part any more."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        assert self.shared is not None
        if any(parameter.is_meta for parameter in module.parameters()):
            raise RuntimeError(
                f"The weights of {self.name} have been taken away since set_offload(): the model was given another "
                "device map, as PEFT does when it opens an adapter. Call set_offload() again, on the model as it is."
            )
        rows = _rows(args, kwargs)
        lookup = isinstance(module, nn.Embedding)  # copying all rows to read few
        on_cpu = lookup or (rows is not None and rows <= self.shared.rows)
        device = CPU if on_cpu else self.main
        if not on_cpu:
            self._bring(module, (args, kwargs))
        if self.shared.rows:
            self._move_caches((*args, *kwargs.values()), device)
        move = self.shared.crossings.move
        return tuple(move(value, device) for value in args), {name: move(kwargs[name], device) for name in kwargs}

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        assert self.shared is not None
        for store, name, tensor in self.replaced:
            store[name] = tensor
        self.replaced = []
        if self.slot is not None:
            self.shared.buffers().release(self.slot)
            self.slot = None
        if output is None:  # an exception is on its way
            return None
        if self.shared.rows:
            self._move_caches((*args, *kwargs.values()), CPU)
        # What follows a layer takes its rows from where they are; what follows others expects them on the accelerator.
        return output if self.numbered else self.shared.crossings.move(output, self.main)

    def _bring(self, module: nn.Module, inputs: Any) -> None:
        """Puts copies of the weights on the main device in their place, until the forward is over."""
        assert self.shared is not None
        for holder in module.modules():
            if getattr(holder, "layout", RELEASED) != RELEASED:  # after `repack`: an order for the CPU alone
                holder.unpack()  # type: ignore[operator]  # a WeightOnlyLinear, perhaps a Hub copy's
        tensors = list(tensors_of(module))
        learns = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (*_tensors_in(inputs), *(tensor for *_, tensor in tensors))
        )
        copy = None
        if self.block is not None and self.block.pieces and not learns:  # the backward reads the weights once more
            self.slot, copy = self.shared.buffers().take(self.block)
            self.shared.prefetch(self.shared.layers.index(self) + 1)
        for holder, store, name, tensor in tensors:
            staged = None
            if copy is not None and self.block is not None:
                staged = self.block.staged(copy, holder, name, tensor)
            self.replaced.append((store, name, tensor))
            store[name] = tensor.to(self.main) if staged is None else staged

    def _move_caches(self, arguments: tuple[Any, ...], device: torch.device) -> None:
        for cache in given_caches(arguments):
            move_cache_of(self.cache_layers, cache, device)


def _register(module: nn.Module, before: Any, after: Any) -> list[Any]:
    """Hooks that run before and after every forward, the second one also where it fails."""
    before, after = torch.compiler.disable(before), torch.compiler.disable(after)
    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True, always_call=True),
    ]


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Texts times tokens of a call, or `None` where no argument says it."""
    given = [*args[:1], *(kwargs[name] for name in ROWS_IN if kwargs.get(name) is not None)]
    if not given or not isinstance(given[0], torch.Tensor):
        return None
    tensor = given[0]
    return tensor.numel() // max(1, tensor.shape[-1]) if tensor.is_floating_point() else tensor.numel()


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def _take_over(model: nn.Module) -> list[_Unit]:
    """The modules that lie in main memory, without Accelerate's hooks, their weights back in place."""
    whole = {
        name for part in model.modules() if isinstance(part, PreTrainedModel) for name in part._no_split_modules or ()
    }
    units: list[_Unit] = []
    hooked: list[tuple[_Unit, list[AlignDevicesHook]]] = []
    apart: list[str] = []
    for name, module in _called_by_themselves(model, "", whole):
        found = [
            hook for inner in module.modules() for hook in _hooks(inner) if any(True for _ in inner.parameters(False))
        ]
        hooks = [hook for hook in found if _is_in_memory(hook)]  # adapters that were put on later have none
        if hooks and len(hooks) < len(found):
            apart.append(name)
        elif hooks or hasattr(module, UNIT):
            _refuse(name, module)
            # a tensor's own device has a number, where "cuda" has none
            main = torch.empty(0, device=hooks[0].execution_device).device if hooks else getattr(module, UNIT).main
            units.append(getattr(module, UNIT, None) or _Unit(name, module, main))
            units[-1].name = name  # another one where adapters stand around the model
            hooked.append((units[-1], hooks))
    for unit, hooks in hooked:
        _give_back(unit.module, hooks)
    _tie(units)
    if apart:
        logger.warning(
            f"set_offload: {', '.join(apart)} lie partly in main memory and partly elsewhere; they stay with "
            "Accelerate. Give a layer one entry of the device map."
        )
    return units


def _called_by_themselves(module: nn.Module, name: str, whole: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Layers, which stay whole, and otherwise the modules that hold tensors."""
    own = any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
    if type(module).__name__ in whole or own:
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _called_by_themselves(child, f"{name}.{child_name}" if name else child_name, whole)


def _hooks(module: nn.Module) -> Iterator[AlignDevicesHook]:
    """Accelerate's hook that brings a module's inputs or weights to a device, if there is one."""
    hook = getattr(module, "_hf_hook", None)
    for one in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
        if isinstance(one, AlignDevicesHook):
            yield one
            return


def _is_in_memory(hook: AlignDevicesHook) -> bool:
    return hook.offload and all(device.type != "meta" for device in hook.original_devices.values())  # else on disk


def _give_back(module: nn.Module, hooks: list[AlignDevicesHook]) -> None:
    """Removes the hooks, which puts the weights back, and lets the hooks' table of weights forget them: it lives as
    long as any hook, and would hold what is moved to page-locked memory a second time.
    """
    tables = [(hook.weights_map, list(hook.original_devices)) for hook in hooks]
    remove_hook_from_module(module, recurse=True)
    for table, names in tables:
        if isinstance(table, PrefixedDataset) and isinstance(table.dataset, OffloadedWeightsLoader):
            for name in names:
                table.dataset.state_dict.pop(f"{table.prefix}{name}", None)
    for *_, tensor in tensors_of(module):
        if tensor.device.type != "cpu":  # buffers, which Accelerate keeps on the accelerator
            tensor.data = tensor.data.cpu()


def _tie(units: list[_Unit]) -> None:
    """Makes one tensor of those that share memory: the hooks gave back each by itself."""
    known: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for unit in units:
        for _, store, name, tensor in tensors_of(unit.module):
            if is_plain(tensor) and tensor.nbytes:
                store[name] = known.setdefault((tensor.data_ptr(), tensor.shape), tensor)


def _refuse(name: str, module: nn.Module) -> None:
    """Refuses what cannot be run either way."""
    for holder, _, _, tensor in tensors_of(module):
        if type(tensor).__module__.startswith("bitsandbytes"):
            raise ValueError(
                f"{name} holds weights that bitsandbytes quantized, which keep a state beside them that cannot be "
                "moved with them. Quantize with WeightOnlyConfig, or leave set_offload out."
            )
        if tensor.is_meta and not any(hook.offload for hook in _hooks(holder)):
            raise ValueError(
                f"{name} holds adapters without values: they were put on while Accelerate had the layer's weights. "
                "Load the model again, call set_offload first, then get_peft_model."
            )


__all__ = ["COMPUTE", "COPY", "WAYS", "Offload", "rows_worth_computing", "set_offload"]
