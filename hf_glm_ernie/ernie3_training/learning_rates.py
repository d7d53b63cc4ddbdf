"""Layer-wise learning rates, as Baidu's fine-tuning code sets them for ERNIE 3.0 models, and for other encoders.

A parameter of depth d learns with `learning_rate * decay ** (total - d)`: embeddings have depth 0, universal layer i
(from 0) i + 1, the norm behind the universal stack and the projection the number N of universal layers, branch layer i
N + i + 1, the norm behind a branch N + n + 1 with n its layers, and everything else, the heads, N + n + 2 = total (62
for 48 + 12 layers). In one of the host's encoders, with one stack of N layers, it is the same without a branch:
embeddings 0, layer i i + 1, everything else N + 1 = total.

Source: `erniekit/model/base_ernie_model.py` of PaddlePaddle/ERNIE, branch ernie-kit-open-v1.0: decay 0.95, weight
decay 0.01 on everything but norms and biases.
"""

import re
from typing import Any

from torch import nn


def parameter_depth(name: str, num_universal_layers: int, num_branch_layers: int) -> int:
    """The depth of a parameter.

    Args:
        name: Its name in the model, with or without the base model's prefix.
        num_universal_layers: N.
        num_branch_layers: n.

    Returns:
        0 .. N + n + 2.
    """
    name = re.sub(r"^(.*\.)?ernie3\.", "", name)
    if name.startswith("embeddings."):
        return 0
    if layer := re.match(r"encoder\.layers\.(\d+)\.", name):
        return int(layer[1]) + 1
    if name.startswith(("encoder_norm.", "task_projection.")):
        return num_universal_layers
    if layer := re.match(r"branches\.\w+\.layers\.(\d+)\.", name):
        return num_universal_layers + int(layer[1]) + 1
    if re.match(r"branches\.\w+\.norm\.", name):
        return num_universal_layers + num_branch_layers + 1
    return num_universal_layers + num_branch_layers + 2


def encoder_depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """The depth of every parameter of a model with one stack of layers, as the host's encoders are.

    Args:
        model: A model whose config has `num_hidden_layers`, with as many layers in one `torch.nn.ModuleList`.

    Returns:
        Name of a parameter -> depth, and the largest depth there is.

    Raises:
        ValueError: there is no such list, or more than one.
    """
    read_words: Any = getattr(model, "get_input_embeddings", None)
    count: Any = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [n for n, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    lists = [n for n in lists if not any(n.startswith(other + ".") for other in lists)]  # a layer's own lists
    if len(lists) != 1 or read_words is None:
        raise ValueError(
            f"{type(model).__name__} has {len(lists)} lists of num_hidden_layers={count} layers; layer-wise learning "
            "rates need one stack, as in ErnieModel or BertModel, or an ERNIE 3.0 model. Name the groups yourself for "
            "others."
        )
    words = read_words()
    place = next(name for name, module in model.named_modules() if module is words)
    parent = place.rpartition(".")[0]
    embeddings = parent if parent.endswith("embeddings") else place
    depths = {}
    for name, _ in model.named_parameters():
        if name.startswith(lists[0] + "."):
            depths[name] = int(name.removeprefix(lists[0] + ".").partition(".")[0]) + 1
        else:
            depths[name] = 0 if name.startswith(embeddings + ".") else count + 1
    return depths, count + 1


def layerwise_lr_groups(
    model: nn.Module, learning_rate: float, decay: float = 0.95, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer.

    Args:
        model: Any ERNIE 3.0 model, or one with a single stack of layers, as transformers' encoders and GLM-130B have;
            its `config` gives the numbers of layers. Frozen parameters are left out.
        learning_rate: That of the heads.
        decay: Factor per step of depth, above 0 and at most 1; 1 = one rate for all.
        weight_decay: Of everything but norms and biases.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, deepest (slowest) first.

    Raises:
        ValueError: a decay outside its range, or a model of another build.

    ```python
    >>> optimizer = torch.optim.AdamW(layerwise_lr_groups(model, 1e-4), betas=(0.9, 0.95))  # doctest: +SKIP
    ```
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} must be above 0 and at most 1 (1 = one learning rate for all layers).")
    config: Any = getattr(model, "config", None)
    if hasattr(config, "branch_num_hidden_layers"):
        universal, branch = config.num_hidden_layers, config.branch_num_hidden_layers
        total = universal + branch + 2
        depths = {name: parameter_depth(name, universal, branch) for name, _ in model.named_parameters()}
    else:
        depths, total = encoder_depths(model)
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = not name.endswith("bias") and id(parameter) not in norms
            groups.setdefault((depths[name], decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay ** (total - depth),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


__all__ = ["encoder_depths", "layerwise_lr_groups", "parameter_depth"]
