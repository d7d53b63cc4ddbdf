"""The host's tokenizer suites on the unified models' tokenizer; `run.py` puts this file into the host's test tree."""

import re
import shutil
import tempfile
import unittest
from pathlib import Path

from tests.test_tokenization_common import TokenizerTesterMixin
from tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin

import hf_glm_ernie
from hf_glm_ernie import Ernie3Tokenizer

ENGLISH = Path(hf_glm_ernie.__file__).parents[1] / "LICENSE"  # eleven thousand characters that are always there
CHINESE = "千里之行，始于足下。学而不思则罔，思而不学则殆。三人行，必有我师焉。"


def save_small_tokenizer(folder: str) -> None:
    """Saves a tokenizer made from a vocabulary of the released encoders' kind."""
    words = re.findall("[a-z]+", ENGLISH.read_text(encoding="utf-8").lower())
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    lines = [*dict.fromkeys([*tokens, *CHINESE, *"!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~"]), "[UNK]"]
    path = Path(folder, "vocab.txt")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    Ernie3Tokenizer.from_released_vocabulary(path, num_pieces=None).save_pretrained(folder)


class SmallTokenizer:
    """Names a folder with a tokenizer before the suites look for it."""

    tokenizer_class = Ernie3Tokenizer
    rust_tokenizer_class = Ernie3Tokenizer
    test_tokenizer_from_extractor = False  # the class is built from files, not from a vocabulary
    folder: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.mkdtemp()
        save_small_tokenizer(cls.folder)
        cls.from_pretrained_id = [cls.folder]
        super().setUpClass()

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        shutil.rmtree(cls.folder)


class Ernie3TokenizationTest(SmallTokenizer, TokenizerTesterMixin, unittest.TestCase):
    pass


class Ernie3TokenizersBackendTest(SmallTokenizer, TokenizersBackendTesterMixin, unittest.TestCase):
    pass
