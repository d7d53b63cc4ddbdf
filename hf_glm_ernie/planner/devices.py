"""Where a model fits: bytes of weights, cache and activations on every device, from the config alone.

Two ways of using several devices. Layer by layer: every layer lies on one device and a row passes through them in
turn; the result is a `device_map`, and what does not fit can be offloaded to memory or disk. Tensor parallelism: every
device holds a part of every weight.

The sizes come from the model's own code on the meta device (`planner/sizes.py`); the placement from the functions
behind `device_map="auto"`. Of every device a reserve is set aside, see `RESERVE`.
"""

import copy
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from transformers import ErnieConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import infer_auto_device_map

from hf_glm_ernie.configuration_ernie3 import Ernie3Config
from hf_glm_ernie.configuration_ernie_uie import ErnieUIEConfig
from hf_glm_ernie.configuration_ernie_utc import ErnieUTCConfig
from hf_glm_ernie.configuration_glm130b import Glm130bConfig
from hf_glm_ernie.inference.offload import COMPUTE, WAYS
from hf_glm_ernie.quantization_weight_only import WeightOnlyConfig
from hf_glm_ernie.weight_only import METHOD

from .cards import Card, cpu_card
from .device_lists import parse_bandwidth, parse_devices, parse_size, read_devices
from .models import PRESETS, known_models, preset_of
from .offloading import OffloadSizes
from .prediction import predict
from .report import ACCELERATE, Device, DeviceMap, DevicePlan, Plan, main_device
from .sizes import Job, Transients, cache_sizes, model_on_meta, module_bytes, reserve_cache, trace

# Of each device, for what no count shows: the CUDA context with its libraries (0.3 to 0.5 GiB), what the card itself
# holds back of its nominal size (0.25 GiB), communication buffers, and gaps between allocations.
RESERVE = 2**30

CONFIG_CLASSES = {
    known.model_type: known for known in (Glm130bConfig, ErnieConfig, ErnieUIEConfig, ErnieUTCConfig, Ernie3Config)
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def plan(
    config: PreTrainedConfig | str | Path,
    devices: str | Sequence[int | str] | None = None,
    bits: int | None = None,
    *,
    context: int | None = None,
    batch: int = 1,
    dtype: torch.dtype | str | None = None,
    cpu: int | str | None = None,
    disk: bool = False,
    tensor_parallel: bool = False,
    reserve: int | str = RESERVE,
    offload: str = ACCELERATE,
    cpu_bandwidth: float | str | None = None,
) -> Plan:
    """Computes where a model goes, what every device holds and how fast it can be, without allocating anything.

    Args:
        config: A config; a folder with config.json, or the file; or the name of a released model, one of `PRESETS`:
            `"glm130b"` or `"GLM-130B"`, every encoder by PaddleNLP's name (`"ernie-3.0-base-zh"`, `"uie-mini"`,
            `"utc-base"`, `"rocketqa-zh-base-query-encoder"`...), `"ernie3-10b"`, `"ernie3-titan"` (these two as
            `Ernie3ForCausalLM`; a config's `architectures` name another class).
        devices: The accelerators: cards by name, `"4xRTX3090"`, `"2xA100-80GB"` (`planner/cards.py` lists them), for
            which speed is predicted too; or memory, `"4x24GiB"`, `"8x40GB,2x24GiB"` (GB = 10^9, GiB = 2^30 bytes); or
            a sequence of names and sizes. `None`: the model runs on the CPU.
        bits: 4 or 8 for weights quantized with `WeightOnlyConfig(bits=...)`, one scale a row; `None`: as the config
            says, usually not quantized.
        context: Tokens of a row, prompt and answer together; at most, and by default, what the positions allow, but
            no more than 2048 by default.
        batch: Rows.
        dtype: Of activations and unquantized weights; default from the config, else float16.
        cpu: Memory that may take offloaded modules, as `"128GiB"`; without `devices`, the memory to run in. Here and
            in `devices` and `reserve` text has a unit, and an `int` is in bytes, at least a MiB of them.
        disk: Whether what is left may be offloaded to disk.
        tensor_parallel: Cut every weight among the devices in place of giving each its layers.
        reserve: Set aside on every device that computes; see `RESERVE`.
        offload: How layers in main memory beside accelerators are run: `"compute"` (few rows on the CPU) and `"copy"`
            (page-locked, copied ahead) as by [`set_offload`]; `"accelerate"`: as Accelerate does by itself.
        cpu_bandwidth: Of main memory where the CPU computes, as `"90GB/s"` or in bytes/s; default 204.8 GB/s, eight
            channels of DDR4-3200.

    Returns:
        The plan. A model that does not fit is no error: `fits` is false then and `missing` says what has no place.

    Raises:
        ValueError: an unknown preset, a size that cannot be read, bits, batch, context or dtype out of range, a model
            type or a card that is not known here, a quantization other than `weight_only_int`, tensor parallelism on
            one device, together with offload, or for a model without a plan for it; a way of offload without memory
            for it.
        FileNotFoundError: no config.json where one is expected.

    ```python
    >>> from hf_glm_ernie.planner import plan

    >>> plan("glm130b", "4x24GiB", bits=4).fits
    True
    ```
    """
    config = _quantized(read_config(config), bits)
    named = read_devices(devices)
    capacities = [size for size, _ in named]
    memory = None if cpu is None else parse_size(cpu, "cpu")
    kept = parse_size(reserve, "reserve")
    processor = cpu_card(parse_bandwidth(cpu_bandwidth, "cpu_bandwidth"))
    ranks = _ranks(capacities, memory is not None or disk) if tensor_parallel else 1
    job = Job(config, _dtype(config, dtype), allowed_context(config, context), positive("batch", batch), ranks)
    _check_offload(offload, bool(capacities), memory is not None)
    if tensor_parallel:
        return _with_speed(_cut_plan(job, capacities, kept), named, processor)
    if not capacities and memory is None:
        raise ValueError("There is no device to plan for: pass devices='4x24GiB' or the like, or cpu='64GiB'.")
    with _quiet():
        planned = _Placing(job, capacities, memory, disk, kept, offload).best()
    return _with_speed(planned, named, processor)


def read_config(config: PreTrainedConfig | str | Path) -> PreTrainedConfig:
    """A config from a preset's name, a folder, a file or itself (a copy).

    Raises:
        ValueError: an unknown name, a model type that is not known here, a file that is not a config.
        FileNotFoundError: a folder without config.json.
    """
    if isinstance(config, PreTrainedConfig):
        if config.model_type not in CONFIG_CLASSES:
            raise _unknown_type(config.model_type, type(config).__name__)
        return copy.deepcopy(config)
    path = Path(config)
    name = str(config) if str(config) in PRESETS else None if path.exists() else preset_of(str(config))
    if name is not None:
        return copy.deepcopy(PRESETS[name])
    if not path.exists():
        raise ValueError(
            f"{str(config)!r} is neither a folder or config.json here nor a known model. {known_models(str(config))}"
        )
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no config.json. Pass the folder of a converted model.")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        model_type = settings.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not a model's config.json: {error}") from None
    if model_type not in CONFIG_CLASSES:
        raise _unknown_type(model_type, str(file))
    return CONFIG_CLASSES[model_type].from_dict(settings)


def _with_speed(planned: Plan, named: Sequence[tuple[int, Card | None]], processor: Card) -> Plan:
    """The plan with its speed, where it fits and every device that computes has a name."""
    cards: dict[Device, Card] = {i: card for i, (_, card) in enumerate(named) if card is not None} | {"cpu": processor}
    computing = [d.name for d in planned.devices if isinstance(d.name, int) and d.modules]
    if not planned.fits or not set(computing) <= cards.keys():
        return planned
    return replace(planned, speed=predict(planned, cards))


def _unknown_type(model_type: object, where: str) -> ValueError:
    return ValueError(
        f"{where} describes a model of type {model_type!r}, which the planner does not know. It plans for "
        f"{', '.join(CONFIG_CLASSES)}."
    )


def _quantized(config: PreTrainedConfig, bits: int | None) -> PreTrainedConfig:
    """The config with the quantization that is asked for, or its own."""
    own = getattr(config, "quantization_config", None)
    if own is not None:
        own = WeightOnlyConfig.from_dict(own) if _is_weight_only(own) else own
        if not isinstance(own, WeightOnlyConfig):
            raise ValueError(
                f"The config is quantized by {_method(own)!r}; the planner counts weight_only_int only. Plan for the "
                "unquantized model, or quantize it with WeightOnlyConfig."
            )
        if bits is not None and bits != own.bits:
            raise ValueError(f"bits={bits}, but the config says its weights have {own.bits}. Leave bits out.")
        config.quantization_config = own
    elif bits is not None:
        if bits not in (4, 8):
            raise ValueError(f"bits={bits} is not offered: 4 or 8, or leave it out for unquantized weights.")
        config.quantization_config = WeightOnlyConfig(bits=bits)
    return config


def _method(quantization: object) -> object:
    return quantization.get("quant_method") if isinstance(quantization, dict) else type(quantization).__name__


def _is_weight_only(quantization: object) -> bool:
    return isinstance(quantization, dict) and _method(quantization) == METHOD


def _dtype(config: PreTrainedConfig, dtype: torch.dtype | str | None) -> torch.dtype:
    chosen = dtype or getattr(config, "dtype", None) or torch.float16
    dtype_of_name = next((known for name, known in DTYPES.items() if chosen in (name, known)), None)
    if dtype_of_name is None:
        raise ValueError(f"dtype={str(dtype)!r} is not one of {', '.join(DTYPES)}.")
    return dtype_of_name


def allowed_context(config: PreTrainedConfig, context: int | None) -> int:
    """Tokens of a row: as asked for, else what the positions allow, 2048 at most.

    Raises:
        ValueError: more than the positions allow, or no whole number above 0.
    """
    largest = config.max_position_embeddings
    if context is None:
        return min(2048, largest)
    if positive("context", context) > largest:
        raise ValueError(f"context={context} is above the {largest} positions of the model (max_position_embeddings).")
    return context


def positive(name: str, number: int) -> int:
    """A number that counts something.

    Raises:
        ValueError: no whole number above 0.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name}={number!r} must be a whole number of at least 1.")
    return number


def _ranks(capacities: Sequence[int], offload: bool) -> int:
    if offload:
        raise ValueError(
            "Tensor parallelism cannot offload: every device computes its part of every weight at once. Leave out cpu "
            "and disk, or tensor_parallel."
        )
    if len(capacities) < 2:
        raise ValueError(f"Tensor parallelism takes at least two devices, got {len(capacities)}.")
    return len(capacities)


def _check_offload(offload: str, accelerators: bool, memory: bool) -> None:
    if offload not in (ACCELERATE, *WAYS):
        raise ValueError(f"offload={offload!r} is not one of {', '.join((ACCELERATE, *WAYS))}.")
    if offload != ACCELERATE and not (accelerators and memory):
        raise ValueError(
            f"offload={offload!r} is about layers in main memory beside accelerators: pass devices='4x24GiB' or the "
            "like and cpu='128GiB', or leave offload out."
        )


def _cut_plan(job: Job, capacities: Sequence[int], reserve: int) -> Plan:
    """Every device holds one rank's part."""
    model = model_on_meta(job)
    weights = module_bytes(model)[0][""]
    transients = trace(job)
    cache = sum(cache_sizes(model, transients).values())
    devices = [
        DevicePlan(name, capacity, reserve, weights, cache, transients.activations, modules=("",))
        for name, capacity in enumerate(capacities)
    ]
    return Plan(job, tuple(devices), None, {})


class _Placing:
    """Tries the host's placements until one fits."""

    def __init__(
        self, job: Job, capacities: Sequence[int], memory: int | None, disk: bool, reserve: int, offload: str
    ) -> None:
        self.job = job
        self.offload = offload
        self.disk = disk
        self.reserve = reserve
        self.capacities: dict[Device, int] = dict(enumerate(capacities))
        if memory is not None:
            self.capacities["cpu"] = memory
        self.main = main_device(list(self.capacities))
        self.transients: Transients = trace(job)
        self.model: PreTrainedModel = model_on_meta(job)
        self.sizes, self.leaves = module_bytes(self.model)
        self.caches = cache_sizes(self.model, self.transients)
        self.unsplit = set(self.model._no_split_modules or ()) | _classes_with_tensors_beside_children(self.model)
        reserve_cache(self.model, self.caches)
        with_cache = module_bytes(self.model)[0]
        layers = [name for name, module in self.model.named_modules() if type(module).__name__ in self.unsplit]
        self.total = with_cache[""]
        self.largest_layer = max((with_cache[name] for name in layers), default=0)
        self.moved: OffloadSizes | None = None
        if offload != ACCELERATE:
            self.moved = OffloadSizes(job, self.model, self.leaves, layers, self.caches, offload)

    def best(self) -> Plan:
        """The first placement that fits: on the devices, evenly if possible; then with offload. Else the one that
        lacks least.
        """
        tried: list[Plan] = []
        for rooms in itertools.chain(self._rooms_without_offload(), self._rooms_with_offload(tried)):
            tried.append(self._tally(self._infer(rooms)))
            if tried[-1].fits:
                return tried[-1]
        return min(tried, key=lambda plan: plan.lacking)

    def _computes(self, name: Device) -> bool:
        return name == self.main or isinstance(name, int)

    def _keeps_cache(self, name: Device) -> bool:
        return self._computes(name) or (name == "cpu" and self.offload == COMPUTE)

    def _room(self, name: Device) -> int:
        """What modules and cache may take on a device."""
        held = self.reserve + self.transients.activations if self._computes(name) else 0
        if self.moved is not None and name == "cpu":
            return self.moved.room(self.capacities[name])
        return max(0, self.capacities[name] - held)

    def _rooms_without_offload(self) -> Iterator[dict[Device, int]]:
        rooms = {name: self._room(name) for name in self.capacities if self._computes(name)}
        # Even shares with a layer's room to spare. The host's own balance differs between its versions, and beside a
        # large embedding it can leave the last device nearly empty.
        share = self.total // len(rooms) + self.largest_layer
        even = {name: min(room, share) for name, room in rooms.items()}
        # The host keeps room for an offloaded layer on the main device. Here none is offloaded; but it may also put a
        # layer into that room which does not fit beside the rest.
        for candidate in (even, rooms):
            yield candidate | {self.main: candidate[self.main] + self.largest_layer}
        yield rooms

    def _rooms_with_offload(self, tried: list[Plan]) -> Iterator[dict[Device, int]]:
        """Rooms on all devices, less and less on the main one, until the cache of the offloaded layers fits there."""
        if not self.disk and all(self._computes(name) for name in self.capacities):
            return
        kept = 0 if self.moved is None else self.moved.largest_block  # the host keeps room for one layer, not for two
        rooms = {name: self._room(name) for name in self.capacities}
        taken, wanted = -1, kept
        while taken < min(wanted, rooms[self.main]):
            taken = wanted
            yield rooms | {self.main: max(0, rooms[self.main] - taken)}
            offloaded = tried[-1].offloaded.items()
            wanted = kept + sum(self._cache(module) for module, name in offloaded if not self._keeps_cache(name))
            if self.moved is not None:
                wanted = max(wanted, taken + tried[-1].lacking)

    def _infer(self, rooms: dict[Device, int]) -> DeviceMap:
        return infer_auto_device_map(self.model, max_memory=dict(rooms), no_split_module_classes=self.unsplit)

    def _cache(self, module: str) -> int:
        return sum(
            size for name, size in self.caches.items() if not module or name == module or name.startswith(f"{module}.")
        )

    def _tally(self, device_map: DeviceMap) -> Plan:
        """Counts what a placement puts where."""
        placed: dict[Device, tuple[str, ...]] = {}
        for module, name in device_map.items():
            placed[name] = (*placed.get(name, ()), module)
        missing = {} if self.disk else {module: self.sizes[module] for module in placed.pop("disk", ())}
        devices = [self._device(name, placed.get(name, ())) for name in [*self.capacities, "disk"]]
        away = {device.name: device.modules for device in devices if not self._computes(device.name)}
        devices = [self._with_offload(device, away) if device.name == self.main else device for device in devices]
        shown = tuple(device for device in devices if device.modules or device.capacity is not None)
        plan = Plan(self.job, shown, device_map, missing, self.offload)
        return plan if plan.fits and device_map else replace(plan, device_map=None)

    def _device(self, name: Device, modules: tuple[str, ...]) -> DevicePlan:
        computes = self._computes(name)
        moved = self.moved if name == "cpu" and modules else None
        activations = 0 if moved is None else moved.step_activations
        return DevicePlan(
            name,
            self.capacities.get(name),
            reserve=self.reserve if computes else 0,
            weights=sum(self.sizes[module] for module in modules),
            cache=sum(self._cache(module) for module in modules) if self._keeps_cache(name) else 0,
            activations=self.transients.activations if computes and modules else activations,
            staging=0 if moved is None else moved.lost_by_pinning(modules),
            modules=modules,
        )

    def _with_offload(self, device: DevicePlan, away: dict[Device, tuple[str, ...]]) -> DevicePlan:
        """Adds to the main device what it needs for modules that lie elsewhere."""
        hosts = [module for name in away if self.moved is None or name != "cpu" for module in away[name]]
        staged = [size for leaf, size in self.leaves.items() if any(f"{leaf}.".startswith(f"{m}.") for m in hosts)]
        cache = sum(self._cache(module) for name in away if not self._keeps_cache(name) for module in away[name])
        staging = max(staged, default=0) + (0 if self.moved is None else self.moved.staging(away.get("cpu", ())))
        return replace(device, cache=device.cache + cache, staging=staging)


def _classes_with_tensors_beside_children(model: PreTrainedModel) -> set[str]:
    """Modules such as a head with a bias beside its linear. Were they split, the host would fail on tied ones."""
    return {
        type(module).__name__
        for module in model.modules()
        if any(True for _ in module.children())
        and (any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)))
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """The host warns of devices that this machine does not have (here it need not), and of the cache of offloaded
    layers, which it takes for their buffers.
    """
    loggers = [logging.getLogger(name) for name in ("accelerate.utils.modeling", infer_auto_device_map.__module__)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = [
    "PRESETS",
    "RESERVE",
    "DevicePlan",
    "Plan",
    "allowed_context",
    "parse_devices",
    "parse_size",
    "plan",
    "positive",
    "read_config",
]
