"""How does text become token ids and back?  Built from a GGUF file's own vocabulary with the `tokenizers` library.

Two kinds: "gpt2" (byte-level BPE, Llama 3 and SmolLM) and "llama" (SentencePiece BPE with byte fallback, Llama 2).
Decoding is ours and works on bytes, because a stream may be cut anywhere inside a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from berth_worker.model.chat import ChatTemplate
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.interface import ModelError

__all__ = ["GgufTokenizer", "byte_level_alphabet"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type (llama.h)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Names of tokens that end a turn or a text, whatever eos_token_id says (llama.cpp's list of end-of-generation tokens)
_END_TEXTS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "</s>")


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each of the 256 bytes (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


class GgufTokenizer:
    """The tokenizer that a GGUF file describes; see `berth_worker.model.interface.Tokenizer` for the methods.

    Raises ModelError if the metadata lacks it or asks for a kind that is not implemented.
    """

    def __init__(self, file: GgufFile) -> None:
        self._path = file.path
        metadata = file.metadata
        self._tokens = _strings(file, "tokenizer.ggml.tokens")
        self.vocab_size = len(self._tokens)
        types = metadata.get("tokenizer.ggml.token_type")
        self._types = [_NORMAL] * self.vocab_size if types is None else [int(kind) for kind in types]
        if len(self._types) != self.vocab_size:
            raise ModelError(
                f"{file.path}: tokenizer.ggml.token_type: found {len(self._types)} entries for {self.vocab_size} tokens"
            )
        self._control = frozenset(i for i, kind in enumerate(self._types) if kind in (_CONTROL, _UNKNOWN))
        self._bos = self._special_id(metadata, "bos")
        eos = self._special_id(metadata, "eos")
        ends = {self._special_id(metadata, name) for name in ("eos", "eot", "eom")} - {None}
        ends |= {i for i in self._control if self._tokens[i] in _END_TEXTS}
        self.eos_ids: frozenset[int] = frozenset(i for i in ends if i is not None)
        kind = metadata.get("tokenizer.ggml.model")
        if kind == "gpt2":
            self._tokenizer = self._byte_level(file)
            self._bytes = self._byte_level_bytes()
        elif kind == "llama":
            self._tokenizer = self._sentencepiece(file)
            self._bytes = self._sentencepiece_bytes()
        else:
            raise ModelError(f"{file.path}: tokenizer.ggml.model: found {kind!r}; supported: 'gpt2', 'llama'")
        self._plain: Tokenizer | None = None
        default_bos = kind == "llama" or metadata.get("tokenizer.ggml.pre") in ("llama-bpe", "llama3", "llama-v3")
        self._add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", default_bos)) and self._bos is not None
        self._template = ChatTemplate(
            metadata.get("tokenizer.chat_template"),
            bos_token=self._tokens[self._bos] if self._bos is not None else "",
            eos_token=self._tokens[eos] if eos is not None else "",
        )

    # -- text to ids -------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        tokenizer = self._tokenizer if parse_special else self._without_special()
        ids = list(tokenizer.encode(text, add_special_tokens=False).ids)
        if add_special_tokens and self._add_bos and self._bos is not None:
            return [self._bos, *ids]
        return ids

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = True
    ) -> str:
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    # -- ids to text -------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(self._piece(i, skip_special_tokens) for i in ids).decode("utf-8", errors="replace")

    def stream(self, *, skip_special_tokens: bool = True) -> _Stream:
        return _Stream(self, skip_special_tokens)

    def _piece(self, token: int, skip_special: bool) -> bytes:
        return b"" if skip_special and token in self._control else self._bytes[token]

    # -- building ----------------------------------------------------------------------------------------------------

    def _special_id(self, metadata: Mapping[str, Any], name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < self.vocab_size:
            raise ModelError(
                f"{self._path}: tokenizer.ggml.{name}_token_id: found {value!r}; "
                f"the vocabulary has {self.vocab_size} tokens"
            )
        return value

    def _vocabulary(self) -> dict[str, int]:
        return {token: i for i, token in reversed(list(enumerate(self._tokens)))}

    def _byte_level(self, file: GgufFile) -> Tokenizer:
        vocabulary = self._vocabulary()
        merges = []
        for merge in _strings(file, "tokenizer.ggml.merges"):
            left, separator, right = merge.partition(" ")
            if not separator or any(part not in vocabulary for part in (left, right, left + right)):
                raise ModelError(
                    f"{file.path}: tokenizer.ggml.merges: found {merge!r}; its parts and sum must be tokens"
                )
            merges.append((left, right))
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=self._is_llama3(file)))
        tokenizer.pre_tokenizer = self._pre_tokenizer(file)
        tokenizer.decoder = decoders.ByteLevel()
        self._add_special(tokenizer)
        return tokenizer

    @staticmethod
    def _is_llama3(file: GgufFile) -> bool:
        return file.metadata.get("tokenizer.ggml.pre") in ("llama-bpe", "llama3", "llama-v3")

    def _pre_tokenizer(self, file: GgufFile) -> pre_tokenizers.PreTokenizer:
        name = file.metadata.get("tokenizer.ggml.pre", "default")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        if self._is_llama3(file):
            split = pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated")
            return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        if name == "smollm":
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if name in ("default", "gpt-2", "gpt2"):
            return byte_level
        raise ModelError(
            f"{file.path}: tokenizer.ggml.pre: found {name!r}; supported: 'smollm', 'llama-bpe', 'gpt-2', 'default'"
        )

    def _sentencepiece(self, file: GgufFile) -> Tokenizer:
        """SentencePiece merges the neighbours whose union scores best; merges ranked by score do the same."""
        vocabulary = self._vocabulary()
        scores = file.metadata.get("tokenizer.ggml.scores")
        if scores is None or len(scores) != self.vocab_size:
            raise ModelError(
                f"{file.path}: tokenizer.ggml.scores: must hold one score for each of {self.vocab_size} tokens"
            )
        ranked = sorted(
            (-float(scores[i]), i, token[:cut], token[cut:])
            for token, i in vocabulary.items()
            if self._types[i] == _NORMAL
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        )
        unknown = next((self._tokens[i] for i, kind in enumerate(self._types) if kind == _UNKNOWN), None)
        merges = [(left, right) for _, _, left, right in ranked]
        model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        tokenizer = Tokenizer(model)
        steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
        if file.metadata.get("tokenizer.ggml.add_space_prefix", True):
            steps.insert(0, normalizers.Prepend("▁"))
        tokenizer.normalizer = normalizers.Sequence(steps)
        self._add_special(tokenizer)
        return tokenizer

    def _add_special(self, tokenizer: Tokenizer) -> None:
        tokenizer.add_special_tokens(
            [AddedToken(self._tokens[i], special=True, normalized=False) for i in sorted(self._control)]
        )
        users = [i for i, kind in enumerate(self._types) if kind == _USER_DEFINED]
        tokenizer.add_tokens([AddedToken(self._tokens[i], special=False, normalized=False) for i in users])

    def _without_special(self) -> Tokenizer:
        if self._plain is None:
            self._plain = Tokenizer.from_str(self._tokenizer.to_str())
            self._plain.encode_special_tokens = True
        return self._plain

    def _byte_level_bytes(self) -> list[bytes]:
        alphabet = byte_level_alphabet()
        pieces = []
        for token, kind in zip(self._tokens, self._types, strict=True):
            plain = kind in (_CONTROL, _UNKNOWN, _USER_DEFINED) or any(character not in alphabet for character in token)
            pieces.append(token.encode() if plain else bytes(alphabet[character] for character in token))
        return pieces

    def _sentencepiece_bytes(self) -> list[bytes]:
        pieces = []
        for token, kind in zip(self._tokens, self._types, strict=True):
            if kind == _BYTE and len(token) == len("<0x00>"):
                pieces.append(bytes([int(token[3:5], 16)]))
            else:
                pieces.append(token.replace("▁", " ").encode() if kind == _NORMAL else token.encode())
        return pieces


class _Stream:
    """See `berth_worker.model.interface.TokenStream`."""

    def __init__(self, tokenizer: GgufTokenizer, skip_special: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer._piece(token, self._skip))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


def _strings(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list) or not value:
        raise ModelError(f"{file.path}: {key}: not in the metadata as a list of strings; the tokenizer needs it")
    return value
