"""LoRA on integers: opening adapters with checks, and telling PEFT how to merge. Needs PEFT.

What merging into integers means stands in `weight_only_lora.py`. PEFT's layers find it by themselves when they meet a
`WeightOnlyLinear` (`weight_only_adapters.py`).
"""

from pathlib import Path

from torch import nn

from .virtual_tokens import name_the_cache

try:
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    from hf_glm_ernie.weight_only_lora import WeightOnlyLoraLinear
except ImportError as error:
    raise ImportError(f"Adapters need PEFT: pip install 'hf-glm-ernie[peft]' ({error})") from error


# What the settings of virtual tokens, which fit any model of the same width, say of the model they were made for.
SIZES_IN_FRONT = {
    "num_layers": "num_hidden_layers",
    "token_dim": "hidden_size",
    "num_attention_heads": "num_attention_heads",
}


def merging_into_integers(config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Tells a LoRA config which layer to put on the integers of a model; to be called before `get_peft_model`.

    Not needed: PEFT's own layer becomes this one by itself where it meets integers. This says it in so many words.

    Args:
        config: Changed in place. What it is told is not saved with an adapter.
        model: With or without quantized layers.

    Returns:
        The config.

    ```python
    >>> from peft import LoraConfig, get_peft_model

    >>> config = merging_into_integers(LoraConfig(task_type="CAUSAL_LM"), model)
    >>> adapted = get_peft_model(model, config)
    ```
    """
    classes = {type(module) for module in model.modules() if type(module).__name__ == "WeightOnlyLinear"}
    if classes:
        config._register_custom_module(dict.fromkeys(classes, WeightOnlyLoraLinear))
    return config


def load_adapter(model: nn.Module, folder: str | Path, trainable: bool = False) -> PeftModel:
    """Opens a saved adapter on a model, and makes sure that it belongs to it.

    PEFT refuses tensors of other shapes, but only warns where an adapter has too few of them or too many, as one for a
    model with another number of layers has.

    Args:
        model: The model it was made for; changed in place.
        folder: What `save_pretrained` of the adapted model wrote.
        trainable: Whether training goes on.

    Returns:
        The adapted model, which can merge where the model's weights are integers.

    Raises:
        FileNotFoundError: there is no adapter in the folder.
        ValueError: it was made for another model, or virtual tokens are to be trained on.
    """
    folder = Path(folder)
    files = [folder / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"There is no adapter in {folder}: {' and '.join(missing)} missing.")
    config = PeftConfig.from_pretrained(str(folder))
    if trainable and config.is_prompt_learning:
        raise ValueError(
            f"The adapter in {folder} is made of virtual tokens, which PEFT opens for use only. To go on training, "
            "resume from a checkpoint of the Trainer."
        )
    if config.is_prompt_learning:
        name_the_cache(model)
    for of_adapter, of_model in SIZES_IN_FRONT.items() if config.is_prompt_learning else ():
        sizes = getattr(config, of_adapter), getattr(model.config, of_model)  # type: ignore[union-attr]  # a model
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{_another_model(folder, config, model)} Its {of_adapter} is {sizes[0]} and the model's {of_model} "
                f"{sizes[1]}."
            )
    with safe_open(files[1], framework="pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{_another_model(folder, config, model)} {str(error)[:300]}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
    if expected != saved:
        odd = sorted(expected.items() ^ saved.items())
        raise ValueError(
            f"{_another_model(folder, config, model)} The adapter has {len(saved)} tensors and the model takes "
            f"{len(expected)}; the first that differs is {odd[0][0]} {odd[0][1]}."
        )
    return adapted


def _another_model(folder: Path, config: PeftConfig, model: nn.Module) -> str:
    base = config.base_model_name_or_path or "a model without a name"
    return f"The adapter in {folder} was made for {base} and does not fit this {type(model).__name__}."


__all__ = ["WeightOnlyLoraLinear", "load_adapter", "merging_into_integers"]
