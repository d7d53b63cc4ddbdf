"""Layer-wise learning rates, as Baidu's fine-tuning code sets them for ERNIE 3.0 models.

A parameter of depth d learns with `learning_rate * decay ** (total - d)`: embeddings have depth 0, universal layer i
(from 0) i + 1, the norm behind the universal stack and the projection the number N of universal layers, branch layer i
N + i + 1, the norm behind a branch N + n + 1 with n its layers, and everything else, the heads, N + n + 2 = total (62
for 48 + 12 layers).

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


def layerwise_lr_groups(
    model: nn.Module, learning_rate: float, decay: float = 0.95, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer.

    Args:
        model: Any ERNIE 3.0 model; its `config` gives the numbers of layers. Frozen parameters are left out.
        learning_rate: That of the heads.
        decay: Factor per step of depth, above 0 and at most 1; 1 = one rate for all.
        weight_decay: Of everything but norms and biases.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, deepest (slowest) first.

    Raises:
        ValueError: a decay outside its range.

    ```python
    >>> optimizer = torch.optim.AdamW(layerwise_lr_groups(model, 1e-4), betas=(0.9, 0.95))  # doctest: +SKIP
    ```
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay} must be above 0 and at most 1 (1 = one learning rate for all layers).")
    config: Any = model.config
    universal, branch = config.num_hidden_layers, config.branch_num_hidden_layers
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = not name.endswith("bias") and id(parameter) not in norms
            groups.setdefault((parameter_depth(name, universal, branch), decays), []).append(parameter)
    total = universal + branch + 2
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay ** (total - depth),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


__all__ = ["layerwise_lr_groups", "parameter_depth"]
