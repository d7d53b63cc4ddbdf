"""The original's tokenizer, slowly: sentencepiece on the extended model, every replacement one after the other.

Written from SwissArmyTransformer 0.4.12 (`ice_tokenizer.py`) and GLM-130B's `generate.py`; independent of the package.
"""

import re
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")


class IceTokenizer:
    def __init__(
        self, path: Path, num_image_tokens: int = 20000, max_blank_length: int = 80, byte_fallback: bool = True
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.max_blank_length = max_blank_length
        self.processors = {}
        for special_tokens in (False, True):
            proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
            proto.ParseFromString(path.read_bytes())
            for token in SPECIAL_TOKENS:
                proto.pieces.add(piece=token, score=0.0, type=4 if special_tokens else 3)
            for token in ["<|tab|>"] + [f"<|blank_{k}|>" for k in range(2, max_blank_length + 1)]:
                proto.pieces.add(piece=token, score=0.0, type=4)
            if byte_fallback:
                proto.trainer_spec.byte_fallback = True
                for value in range(256):
                    proto.pieces.add(piece=f"<0x{value:02X}>", score=0.0, type=6)
            self.processors[special_tokens] = sentencepiece.SentencePieceProcessor(
                model_proto=proto.SerializeToString()
            )

    def prepared(self, text: str, linebreak: bool, whitespaces: bool, add_dummy_prefix: bool) -> str:
        if linebreak:
            text = text.replace("\n", "<n>")
        if whitespaces:
            text = text.replace("\t", "<|tab|>")
            for length in range(self.max_blank_length, 1, -1):
                text = text.replace(" " * length, f"<|blank_{length}|>")
        return text if add_dummy_prefix else "<n>" + text

    def encode(
        self,
        text: str,
        linebreak: bool = True,
        whitespaces: bool = True,
        special_tokens: bool = False,
        add_dummy_prefix: bool = True,
    ) -> list[int]:
        text = self.prepared(text, linebreak, whitespaces, add_dummy_prefix)
        ids = [index + self.num_image_tokens for index in self.processors[special_tokens].encode(text)]
        return ids if add_dummy_prefix else ids[2:]

    def tokenize(
        self,
        text: str,
        linebreak: bool = True,
        whitespaces: bool = True,
        special_tokens: bool = False,
        add_dummy_prefix: bool = True,
    ) -> list[str]:
        text = self.prepared(text, linebreak, whitespaces, add_dummy_prefix)
        tokens = self.processors[special_tokens].encode(text, out_type=str)
        return tokens if add_dummy_prefix else tokens[2:]

    def decode(self, ids: list[int], special_tokens: bool = False) -> str:
        text = self.processors[special_tokens].decode([index - self.num_image_tokens for index in ids])
        text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
        for length in range(2, self.max_blank_length + 1):
            text = text.replace(f"<|blank_{length}|>", " " * length)
        return text

    def token_id(self, token: str) -> int:
        return self.processors[True].piece_to_id(token) + self.num_image_tokens

    def prompt(self, text: str) -> list[int]:
        """What the original's generation gives the model for a text (which holds one kind of mask at most)."""
        ids: list[int] = []
        for piece in re.split(r"(\[[sg]?MASK\])", text):
            is_mask = re.fullmatch(r"\[[sg]?MASK\]", piece)
            ids += [self.token_id(piece)] if is_mask else self.encode(piece)
        if not re.search(r"\[[sg]?MASK\]", text):
            ids += [self.token_id("[gMASK]")]
        elif not re.search(r"\[[sg]?MASK\]$", text):
            ids += [self.token_id("</s>")]
        return [*ids, self.token_id("<sop>")]
