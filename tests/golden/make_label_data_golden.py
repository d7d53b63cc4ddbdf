"""Cuts the goldens of `label-data` out of PaddleNLP's full outputs.

    python tests/golden/make_label_data_golden.py

The full set is ../../../shared/goldens/ernie_workflows: PaddleNLP 2.8.1 and its published scripts (develop of
2023-07-07, commit 7ddda7bcd4b6) on made-up annotations; its README.md says how it was made. Here stand all inputs but
one, and of the rows and scripts what is named below. Writes `ernie_label_data/`.
"""

import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent
FULL = HERE.parents[2] / "shared" / "goldens" / "ernie_workflows"
SMALL = HERE / "ernie_label_data"

INPUTS = (
    *("doccano_relation.jsonl", "doccano_data.jsonl", "doccano_data_relation.jsonl", "doccano_cls.jsonl"),
    *("label_studio_ext.json", "label_studio_cls.json", "label_studio_utc.json", "utc_options.txt"),
)
# File of rows -> its lines, by negative_ratio and is_train.
ROWS = {
    "doccano_relation.default.jsonl": [(3, True)],
    "doccano_data.default.jsonl": [(5, False)],
    "doccano_data_relation.default.jsonl": [(5, True)],
    "label_studio_ext.default.jsonl": [(3, True)],
}
SCRIPTS = ("doccano_cls.jsonl", "label_studio_cls.json", "label_studio_utc.json")


def main() -> None:
    shutil.rmtree(SMALL, ignore_errors=True)
    for folder in ("inputs", "rows", "scripts", "utc"):
        (SMALL / folder).mkdir(parents=True)
    for name in INPUTS:
        shutil.copyfile(FULL / "inputs" / name, SMALL / "inputs" / name)
    for name, wanted in ROWS.items():
        head, *lines = read(FULL / "rows" / name)
        write(SMALL / "rows" / name, [head, *[x for x in lines if (x["negative_ratio"], x["is_train"]) in wanted]])
    shutil.copyfile(FULL / "rows" / "cls.jsonl", SMALL / "rows" / "cls.jsonl")
    shutil.copyfile(FULL / "utc" / "rows.jsonl", SMALL / "utc" / "rows.jsonl")
    cases = [case for path in sorted((FULL / "scripts").glob("*.jsonl")) for case in read(path)]
    write(SMALL / "scripts" / "scripts.jsonl", [case for case in cases if case["input"] in SCRIPTS or case["error"]])


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, lines: list[dict]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
