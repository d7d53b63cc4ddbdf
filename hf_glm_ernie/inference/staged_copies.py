"""Copies of layers from main memory to a device, the next layer's while one layer computes.

Each layer's tensors lie one behind the other in a block of main memory (`HostBlock`), page-locked where the device can
read it so: one copy then brings a layer, at the speed of the link, and needs no hand of the processor. On the device
two buffers take turns (`StagedCopies`). A stream of its own does the copies; it waits until the layer that used a
buffer before has been computed, and the layer waits for its copy. Both wait on the device: the host never does, and
memory is bounded whatever it runs ahead.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

# Tensors begin at multiples of this: more than any dtype and any vector of a processor asks for.
ALIGNMENT = 256

Place = tuple[int, str]
"""A tensor's place in a layer: `id` of the module that holds it, and its name there."""


class Piece(NamedTuple):
    """Where a tensor lies in a block.

    Attributes:
        start: Its first byte.
        end: The byte behind its last.
        pointer: Its address in main memory. A tensor at another one has been replaced and is no longer in the block.
    """

    start: int
    end: int
    pointer: int


def tensors_of(module: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Any], str, torch.Tensor]]:
    """Yields every parameter and buffer of a module and those inside it, with the module and the dict that hold it."""
    for holder in module.modules():
        for store in (holder._parameters, holder._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    yield holder, store, name, tensor


def block_bytes(layer: nn.Module) -> int:
    """Bytes of the block that a layer's tensors take, each beginning at a multiple of `ALIGNMENT`."""
    return sum(_aligned(tensor.nbytes) for *_, tensor in tensors_of(layer))


def pinned_bytes(size: int) -> int:
    """Bytes that torch takes for page-locked memory: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def _plain_tensors(layer: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """What a block can hold: tensors of torch's own classes, on the CPU."""
    for holder, _, name, tensor in tensors_of(layer):
        if is_plain(tensor) and tensor.device.type == "cpu" and tensor.nbytes:
            yield holder, name, tensor


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of torch's own classes: its bytes are all there is to it."""
    return type(tensor) in (torch.Tensor, nn.Parameter)


class HostBlock:
    """A layer's tensors, one behind the other in main memory.

    The tensors become views of the block, so the layer is in memory once, and the processor computes from the same
    bytes. Each view has a storage of its own, so that saving takes them for what they are: separate tensors.

    Args:
        layer: Its tensors on the CPU are moved into the block; those of subclasses of `Tensor` stay where they are.
        pinned: Whether the block is page-locked. torch rounds such blocks up to the next power of two.

    Raises:
        RuntimeError: the system gives no page-locked memory; the layer is unchanged.
    """

    def __init__(self, layer: nn.Module, pinned: bool) -> None:
        self.pieces: dict[Place, Piece] = {}
        found = list(_plain_tensors(layer))
        starts = [0]
        for _, _, tensor in found:
            starts.append(starts[-1] + _aligned(tensor.nbytes))
        try:
            self.bytes = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pinned)
        except RuntimeError as error:
            raise RuntimeError(
                f"The system gives no {pinned_bytes(starts[-1]) / 2**20:.0f} MiB of page-locked memory for a layer "
                f"({str(error).splitlines()[0]}). With set_offload(..., pin=False) the weights stay in ordinary "
                "memory, which is copied more slowly."
            ) from error
        for (holder, name, tensor), start in zip(found, starts, strict=False):
            end = start + tensor.nbytes
            storage: torch.UntypedStorage = self.bytes.untyped_storage()[start:end]
            view = torch.empty(0, dtype=tensor.dtype).set_(storage).view(tensor.shape)
            view.copy_(tensor.detach())
            tensor.data = view
            self.pieces[id(holder), name] = Piece(start, end, view.data_ptr())

    def holds_all_of(self, layer: nn.Module, pinned: bool) -> bool:
        """Whether all tensors that could lie in the block do, and the block lies where it should."""
        held = {(place, piece.pointer) for place, piece in self.pieces.items()}
        found = {((id(holder), name), tensor.data_ptr()) for holder, name, tensor in _plain_tensors(layer)}
        return found <= held and self.bytes.is_pinned() == pinned

    def staged(self, copy: torch.Tensor, holder: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """A tensor of the layer within a copy of the block, or `None` where it is not, or no longer, in the block."""
        piece = self.pieces.get((id(holder), name))
        if piece is None or tensor.nbytes != piece.end - piece.start or tensor.data_ptr() != piece.pointer:
            return None
        return copy[piece.start : piece.end].view(tensor.dtype).view(tensor.shape)


class SameDevice:
    """Stands for a stream where there is none: what is asked for happens at once."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
        """Copies, when `after` has happened. Returns what happens when it is done."""
        target.copy_(source)

    def wait(self, event: Any) -> None:
        """Lets what is computed from here on wait for a copy."""

    def computed(self) -> Any:
        """What happens when all that was begun so far has been computed."""


class CopyStream(SameDevice):
    """A stream of an accelerator beside the one that computes.

    Args:
        device: The accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.runtime = torch.get_device_module(device)
        self.stream = self.runtime.Stream(device=device)

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> Any:
        """As in the base class, on the stream of its own."""
        with self.runtime.stream(self.stream):
            if after is not None:
                self.stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def wait(self, event: Any) -> None:
        """As in the base class: the stream that computes waits, not the host."""
        self.runtime.current_stream(self.device).wait_event(event)

    def computed(self) -> Any:
        """As in the base class, an event of the stream that computes."""
        return self.runtime.current_stream(self.device).record_event()


def copy_stream(device: torch.device) -> SameDevice:
    """What copies to a device."""
    return SameDevice() if device.type == "cpu" else CopyStream(device)


class StagedCopies:
    """Two buffers on a device, each large enough for a layer, and which layer comes next.

    A copy is made for one use: weights may change between two forwards (adapters are merged, or trained), so none is
    kept for the next one.

    Args:
        device: Where the layers are computed.
        size: Bytes of the largest block.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        self.stream = copy_stream(device)
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self.free = [self.stream.computed()] * 2  # what used the memory before may still be running
        self.turn = 0
        self.ahead: tuple[HostBlock, int, Any] | None = None

    def prefetch(self, block: HostBlock) -> None:
        """Begins the copy of the layer that is computed next."""
        slot, self.turn = self.turn, 1 - self.turn
        target = self.buffers[slot][: block.bytes.numel()]
        self.ahead = (block, slot, self.stream.copy(target, block.bytes, self.free[slot]))

    def take(self, block: HostBlock) -> tuple[int, torch.Tensor]:
        """The copy of a layer, begun by [`prefetch`] or now. Returns its buffer's number, for [`release`], and it."""
        if self.ahead is None or self.ahead[0] is not block:
            self.prefetch(block)
        assert self.ahead is not None
        _, slot, event = self.ahead
        self.ahead = None
        self.stream.wait(event)
        return slot, self.buffers[slot]

    def release(self, slot: int) -> None:
        """Says that all that reads a buffer has been begun."""
        self.free[slot] = self.stream.computed()

    def forget(self) -> None:
        """Drops a copy that was begun for a forward that has ended."""
        self.ahead = None


__all__ = [
    "CopyStream",
    "HostBlock",
    "SameDevice",
    "StagedCopies",
    "block_bytes",
    "copy_stream",
    "is_plain",
    "pinned_bytes",
    "tensors_of",
]
