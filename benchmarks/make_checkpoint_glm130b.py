"""Writes a checkpoint of random fp16 weights in the released GLM-130B layout, for measuring the converter.

    python benchmarks/make_checkpoint_glm130b.py --output DIR

makes 2.2 GB on 8 ranks (hidden 2048, inner 5632, 16 layers, vocabulary 150528). One rank is in memory at a time.
`--headers-only` leaves the data out: the files have their full size and names but take no disk, which is enough for
`--dry-run`, also at the released size (`--released-size`, 8 files of 32 GB).

    python benchmarks/make_checkpoint_glm130b.py --archive PARTS [--output DIR] [--part-bytes N] [--order 5,4,0,1,...]

writes the archive that the weights are released in: one plain tar cut into `glm-130b-sat.tar.part_00`, ...; without
`--output` the rank files it is made of are removed again. With `--headers-only --released-size` these are 60 parts of
4 GiB whose headers (tar, zip, pickle) are real, made in seconds.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, which need not be installed

from tests.support.archives import PART_BYTES, Archive, released_members, write_archive

ITERATION = "49300"
RELEASED_ORDER = (5, 4, 0, 1)
"""How the ranks begin in the released archive; the others follow by number."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the defaults are the measured one."""

    hidden: int = 2048
    inner: int = 5632
    layers: int = 16
    heads: int = 16
    vocabulary: int = 150528
    context: int = 2048


RELEASED = Shape(hidden=12288, inner=32768, layers=70, heads=96)


def rank_shapes(shape: Shape, ranks: int) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """(name, shape, whether every rank holds the same) of each tensor on one rank, in the original's order."""
    hidden, inner = shape.hidden, shape.inner
    yield "transformer.word_embeddings.weight", (shape.vocabulary // ranks, hidden), False
    for i in range(shape.layers):
        layer = f"transformer.layers.{i}"
        for kind in ("weight", "bias"):
            yield f"{layer}.input_layernorm.{kind}", (hidden,), True
        yield f"{layer}.attention.query_key_value.weight", (3 * hidden // ranks, hidden), False
        yield f"{layer}.attention.query_key_value.bias", (3 * hidden // ranks,), False
        yield f"{layer}.attention.dense.weight", (hidden, hidden // ranks), False
        yield f"{layer}.attention.dense.bias", (hidden,), True
        for kind in ("weight", "bias"):
            yield f"{layer}.post_attention_layernorm.{kind}", (hidden,), True
        yield f"{layer}.mlp.dense_4h_to_h.weight", (hidden, inner // ranks), False
        yield f"{layer}.mlp.dense_4h_to_h.bias", (hidden,), True
        yield f"{layer}.mlp.dense_h_to_4h.weight", (2 * inner // ranks, hidden), False
        yield f"{layer}.mlp.dense_h_to_4h.bias", (2 * inner // ranks,), False
    for kind in ("weight", "bias"):
        yield f"transformer.final_layernorm.{kind}", (hidden,), True


def write_checkpoint(output: Path, shape: Shape, ranks: int, headers_only: bool) -> None:
    """Writes `latest`, the rank files and, beside them, the settings that tensors cannot tell (`config.json`)."""
    folder = output / ITERATION
    folder.mkdir(parents=True)
    (output / "latest").write_text(ITERATION)
    settings = {"num_attention_heads": shape.heads, "max_sequence_length": shape.context}
    (output / "config.json").write_text(json.dumps(settings))
    for rank in range(ranks):
        path = folder / f"mp_rank_{rank:02d}_model_states.pt"
        if headers_only:
            with FakeTensorMode():
                fakes = {name: torch.empty(size, dtype=torch.float16) for name, size, _ in rank_shapes(shape, ranks)}
            with torch.serialization.skip_data(materialize_fake_tensors=True):
                torch.save({"module": fakes}, path)
            continue
        own, common = torch.Generator().manual_seed(rank + 1), torch.Generator().manual_seed(0)
        tensors = {
            name: torch.randn(size, generator=common if same else own).mul_(0.02).half()
            for name, size, same in rank_shapes(shape, ranks)
        }
        torch.save({"module": tensors}, path)


def write_archive_of(
    checkpoint: Path, folder: Path, part_bytes: int = PART_BYTES, order: Sequence[int] = RELEASED_ORDER
) -> Archive:
    """Writes the ranks of a checkpoint as the archive in parts, and beside the parts the settings.

    Args:
        checkpoint: From `write_checkpoint`.
        folder: Where the parts go.
        part_bytes: Size of every part but the last.
        order: Ranks in the order of the archive; the others follow, numbers that no rank has are passed over.
    """
    ranks = dict(enumerate(sorted((checkpoint / ITERATION).iterdir())))
    first = [rank for rank in order if rank in ranks]
    members = released_members([(rank, ranks[rank]) for rank in [*first, *(ranks.keys() - set(first))]], ITERATION)
    archive = write_archive(folder, members, part_bytes=part_bytes)
    shutil.copy(checkpoint / "config.json", folder)
    return archive


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder to be made")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument(
        "--released-size", action="store_true", help="the sizes of the released 130B; with --headers-only"
    )
    parser.add_argument("--headers-only", action="store_true", help="no data: full file sizes, no disk taken")
    parser.add_argument("--archive", type=Path, metavar="PARTS", help="folder for the same as a tar in parts")
    parser.add_argument("--part-bytes", type=int, default=PART_BYTES, help="default: 4 GiB, as released")
    parser.add_argument(
        "--order",
        type=lambda text: tuple(map(int, text.split(","))),
        default=RELEASED_ORDER,
        help="ranks as they follow in the tar (default: 5,4,0,1 and the others, as released)",
    )
    options = parser.parse_args()
    if options.released_size and not options.headers_only:
        parser.error("--released-size needs --headers-only (the data would be 260 GB)")
    if options.output is None and options.archive is None:
        parser.error("give --output, --archive or both")
    if options.archive:
        options.archive.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.archive) as aside:
        checkpoint = options.output or Path(aside) / "checkpoint"
        write_checkpoint(
            checkpoint, RELEASED if options.released_size else Shape(), options.ranks, options.headers_only
        )
        if options.output:
            _report(sorted((checkpoint / ITERATION).iterdir()), checkpoint)
        if options.archive:
            _report(
                write_archive_of(checkpoint, options.archive, options.part_bytes, options.order).parts, options.archive
            )


def _report(files: Sequence[Path], folder: Path) -> None:
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files):,} bytes in {folder}")


if __name__ == "__main__":
    main()
