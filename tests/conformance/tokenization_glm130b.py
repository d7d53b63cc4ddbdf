"""The host's tokenizer suites on GLM-130B's tokenizer; `run.py` puts this file into the host's test tree."""

import io
import shutil
import tempfile
import unittest
from pathlib import Path

import pytest
import sentencepiece
from tests.test_tokenization_common import TokenizerTesterMixin
from tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin

import hf_glm_ernie
from hf_glm_ernie import Glm130bTokenizer

ENGLISH = Path(hf_glm_ernie.__file__).parents[1] / "LICENSE"  # eleven thousand characters that are always there
CHINESE = "千里之行，始于足下。学而不思则罔，思而不学则殆。三人行，必有我师焉。"


def save_small_tokenizer(folder: str) -> None:
    """Trains a sentencepiece model of the released kind and saves the tokenizer made from it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*ENGLISH.read_text(encoding="utf-8").split("\n\n"), CHINESE] * 2),
        model_writer=model,
        model_type="unigram",
        vocab_size=1000,
        character_coverage=1.0,
        hard_vocab_limit=False,
        user_defined_symbols=["<n>"],
        pad_id=3,
        num_threads=1,
        minloglevel=2,
    )
    path = Path(folder, "ice_text.model")
    path.write_bytes(model.getvalue())
    Glm130bTokenizer.from_ice_text_model(path, num_image_tokens=20).save_pretrained(folder)


class SmallTokenizer:
    """Names a folder with a tokenizer before the suites look for it."""

    tokenizer_class = Glm130bTokenizer
    rust_tokenizer_class = Glm130bTokenizer
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


class Glm130bTokenizationTest(SmallTokenizer, TokenizerTesterMixin, unittest.TestCase):
    pass


class Glm130bTokenizersBackendTest(SmallTokenizer, TokenizersBackendTesterMixin, unittest.TestCase):
    def test_training_new_tokenizer(self) -> None:
        """The vocabulary is a sentencepiece model's: the library cannot train one, and the error says what can."""
        with pytest.raises(NotImplementedError, match="Train a sentencepiece model"):
            self.get_rust_tokenizer().train_new_from_iterator(["a text"], 100)

    test_training_new_tokenizer_with_special_tokens_change = test_training_new_tokenizer
