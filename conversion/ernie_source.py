"""What a conversion of an ERNIE encoder reads: weights under canonical names, settings, the tokenizer's folder.

A LoRA folder is read together with the checkpoint it was trained on: the adapter's own settings and tokenizer count
before those of the base, and a tensor that the adapter holds whole (a classifier, a bias) takes the place of the
base's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .ernie_lora import Adapter, MergedFiles, open_adapter
from .ernie_names import state_of_training
from .ernie_prefix import canonical_names
from .ernie_settings import SETTINGS_FILES, Settings, read_settings
from .lazy_files import TensorFiles
from .operations import SettingsError, TensorSpec
from .paddle_adapters import is_lora
from .paddle_files import open_paddle_source


@dataclass(frozen=True)
class Source:
    """A checkpoint of PaddleNLP's, opened.

    Attributes:
        files: Where pieces are read from; of an adapter, they are part 1.
        kind: The format of the weights, in words.
        names: PaddleNLP's 2.5 name -> the name in the file.
        specs: PaddleNLP's 2.5 name -> shape and dtype.
        settings: The settings.
        tokenizer_folder: Where the vocabulary lies, if there is one.
        encoder: What the file calls the encoder.
        left_out: Name -> why it is not converted.
        notices: What the user should know.
        adapter: What is merged into the weights, if anything.
    """

    files: TensorFiles
    kind: str
    names: Mapping[str, str]
    specs: Mapping[str, TensorSpec]
    settings: Settings
    tokenizer_folder: Path
    encoder: str
    left_out: Mapping[str, str]
    notices: tuple[str, ...]
    adapter: Adapter | None = None

    def part_of(self, name: str) -> int:
        """The part that holds a tensor, by its canonical name."""
        return int(self.adapter is not None and name in self.adapter.whole)


def read_source(path: Path, base: Path | None, given_settings: Path | None, prefix: str | None) -> Source:
    """Opens a checkpoint, or an adapter with its base.

    Args:
        path: `--source`.
        base: `--base`: the checkpoint an adapter was trained on.
        given_settings: `--config`.
        prefix: `--prefix`.

    Raises:
        ConversionError: anything that does not fit; a base for what is no adapter, an adapter without one.
    """
    if base is None:
        return _read_checkpoint(path, given_settings, prefix)
    if not is_lora(path):
        raise SettingsError(
            f"--base {base}: {path} is no LoRA adapter, so there is nothing to merge. --base goes with a folder of "
            "lora_config.json and lora_model_state.pdparams."
        )
    if is_lora(base):
        raise SettingsError(f"--base {base}: an adapter itself. Pass the whole model it was trained on.")
    adapter = open_adapter(path)
    has_settings = any((adapter.folder / name).is_file() for name in SETTINGS_FILES)
    whole = _read_checkpoint(base, given_settings, prefix, adapter.folder if has_settings else None)
    has_vocabulary = any((adapter.folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    names = {**whole.names, **adapter.whole}
    specs = dict(whole.specs) | {name: adapter.files.specs[in_file] for name, in_file in adapter.whole.items()}
    adapter.check_against(specs, base)
    return replace(
        whole,
        files=MergedFiles(whole.files, adapter.files),
        kind=f"{whole.kind}, {adapter.describe()}",
        names=names,
        specs=specs,
        tokenizer_folder=adapter.folder if has_vocabulary else whole.tokenizer_folder,
        notices=(*whole.notices, f"merged: {adapter.describe()}"),
        adapter=adapter,
    )


def _read_checkpoint(
    path: Path, given_settings: Path | None, prefix: str | None, settings_folder: Path | None = None
) -> Source:
    checkpoint = open_paddle_source(path)
    settings = read_settings(settings_folder or checkpoint.folder, given_settings)
    training = state_of_training(checkpoint.specs)
    names = canonical_names([name for name in checkpoint.specs if name not in training], path, prefix)
    notices = list(names.notices)
    if checkpoint.passed_over:
        notices.append(f"passed over, the state of a training run: {', '.join(checkpoint.passed_over)}")
    return Source(
        checkpoint,
        checkpoint.kind,
        names.canonical,
        {name: checkpoint.specs[in_file] for name, in_file in names.canonical.items()},
        settings,
        checkpoint.folder,
        names.encoder,
        {**training, **names.outside},
        tuple(notices),
    )


__all__ = ["Source", "read_source"]
