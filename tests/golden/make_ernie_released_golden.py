"""Writes `ernie_released_settings.json`: what PaddleNLP says of the released encoders that this project knows by name.

    python tests/golden/make_ernie_released_golden.py paddlenlp/transformers/ernie/configuration.py

The file is that of PaddleNLP 2.8.1's wheel. It is read, not run.
"""

import ast
import json
import sys
from pathlib import Path

TABLE = "ERNIE_PRETRAINED_INIT_CONFIGURATION"
LINES = ("ernie-3.0-", "uie-", "utc-", "rocketqa")
KEYS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"),
    *("max_position_embeddings", "type_vocab_size", "task_type_vocab_size", "use_task_id", "hidden_act"),
)


def main() -> None:
    """Reads the table, fills in the class's defaults, writes."""
    tree = ast.parse(Path(sys.argv[1]).read_text(encoding="utf-8"))
    table = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == TABLE
    )
    start = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    names = [argument.arg for argument in start.args.args][-len(start.args.defaults) :]
    defaults = {name: ast.literal_eval(value) for name, value in zip(names, start.args.defaults, strict=True)}
    found = {
        name: {key: settings.get(key, defaults[key]) for key in KEYS}
        for name, settings in table.items()
        if name.startswith(LINES)
    }
    text = json.dumps(found, indent=1, sort_keys=True)
    Path(__file__).with_name("ernie_released_settings.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
