"""How does text become token ids and back?  With the `tokenizers` library, from a checkpoint's own vocabulary.

Two kinds: "gpt2" (byte-level BPE, Llama 3 and SmolLM) and "llama" (SentencePiece BPE with byte fallback, Llama 2).
Decoding is ours and works on bytes, because a stream may be cut anywhere inside a character.
`tokenizer_hf` builds the same from a tokenizer.json.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from berth_worker.model.chat import ChatTemplate, Shield
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.interface import ModelError
from berth_worker.model.json_file import shown

__all__ = ["BpeTokenizer", "GgufTokenizer", "Vocabulary", "byte_level_alphabet", "is_byte_token"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type (llama.h)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Names of tokens that end a turn or a text, whatever eos_token_id says (llama.cpp's list of end-of-generation tokens)
END_TEXTS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "</s>")

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time: no threads beside the kernels' pool

PIECE = 1 << 16  # characters of a long text that are counted at once
LONGEST_TOKEN = 512  # characters; Llama's longest have 128 (spaces)


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each of the 256 bytes (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What decoding and the engine need to know of a vocabulary."""

    tokens: list[str]
    """Token texts by id, as the vocabulary spells them; "" where an id has none."""
    kinds: list[int]
    """Kind of each token, as GGUF numbers them: 1 normal, 2 unknown, 3 control, 4 added by users, 6 byte."""
    byte_level: bool
    """Whether tokens are spelled in GPT-2's stand-ins for bytes, rather than as text with a low line for a space."""
    bos: int | None
    add_bos: bool
    """Whether encoding puts `bos` in front."""
    eos_ids: frozenset[int]


class BpeTokenizer:
    """See `berth_worker.model.interface.Tokenizer`."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, template: ChatTemplate) -> None:
        self._tokenizer, self._vocabulary, self._template = tokenizer, vocabulary, template
        self.vocab_size = len(vocabulary.tokens)
        self.eos_ids = vocabulary.eos_ids
        self.control_ids = frozenset(i for i, kind in enumerate(vocabulary.kinds) if kind in (CONTROL, UNKNOWN))
        self._shield = Shield({vocabulary.tokens[i]: i for i in self.control_ids})
        self._alphabet = byte_level_alphabet() if vocabulary.byte_level else {}
        self._pieces: dict[int, bytes] = {}
        self._plain: Tokenizer | None = None

    # -- text to ids -------------------------------------------------------------------------------------------------

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True, most: int | None = None
    ) -> list[int]:
        tokenizer = self._tokenizer if parse_special else self._without_special()
        if most is not None and len(text) > PIECE:  # 16 MB of text would take 2 GB at once
            found = 0
            for begin in range(0, len(text), PIECE):
                found += len(_ids(tokenizer, text[begin : begin + PIECE]))
                _check_length(found, most)
        ids = _ids(tokenizer, text)
        if add_special_tokens and self._vocabulary.add_bos and self._vocabulary.bos is not None:
            return [self._vocabulary.bos, *ids]
        return ids

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = True
    ) -> str:
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] = (),
        add_generation_prompt: bool = True,
        call: str | None = None,
        most: int | None = None,
    ) -> list[int]:
        ids = self._encode_conversation(messages, tools, add_generation_prompt, most)
        if call is not None:
            tag, begun, _ = self._template.call(call)
            ids += self.encode(tag, add_special_tokens=False)
            ids += self.encode(begun, add_special_tokens=False, parse_special=False)
        return ids

    def call_text(self, name: str) -> tuple[str, str]:
        tag, begun, end = self._template.call(name)
        return tag + begun, end

    def _encode_conversation(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]],
        add_generation_prompt: bool,
        most: int | None,
    ) -> list[int]:
        mark = self._shield.mark_for([messages, tools])
        if mark is not None:
            messages, tools = self._shield.marked(messages, mark), self._shield.marked(tools, mark)
        text = self._template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        if mark is None:
            return self.encode(text, add_special_tokens=False, most=most)
        ids: list[int] = []
        for piece in self._shield.split(text, mark):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self.encode(piece, add_special_tokens=False, parse_special=False, most=most)
            _check_length(len(ids), most)
        return ids

    def _without_special(self) -> Tokenizer:
        if self._plain is None:
            self._plain = _without_special(self._tokenizer)
        return self._plain

    # -- ids to text -------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(self._piece(i, skip_special_tokens) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return self._piece(token, skip_special=False)

    def stream(self, *, skip_special_tokens: bool = True) -> _Stream:
        return _Stream(self, skip_special_tokens)

    def _piece(self, token: int, skip_special: bool) -> bytes:
        if skip_special and token in self.control_ids:
            return b""
        if token not in self._pieces:
            self._pieces[token] = self._bytes_of(token)
        return self._pieces[token]

    def _bytes_of(self, token: int) -> bytes:
        text, kind = self._vocabulary.tokens[token], self._vocabulary.kinds[token]
        if self._vocabulary.byte_level:
            if kind in (CONTROL, UNKNOWN, USER_DEFINED) or any(character not in self._alphabet for character in text):
                return text.encode()
            return bytes(self._alphabet[character] for character in text)
        if kind == BYTE:
            return bytes([int(text[3:5], 16)])
        return text.replace("▁", " ").encode() if kind == NORMAL else text.encode()


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    # Of the library's calls the one that lets go of Python's lock: 1 MB would hold up all streams for 0.7 s.
    # It keeps no offsets either, which would take three times as long.
    ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def _check_length(found: int, most: int | None) -> None:
    """Twice as many are let through: a text that is cut anywhere has a few more tokens than the whole."""
    if most is not None and found > 2 * most:
        raise ValueError(f"more than {2 * most} tokens are too many; at most {most} are right")


def _without_special(tokenizer: Tokenizer) -> Tokenizer:
    """The same, but the texts of special tokens are text; it shares the vocabulary, a copy of which would take long."""
    plain = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer"):
        if (found := getattr(tokenizer, part)) is not None:
            setattr(plain, part, found)
    others = {i: token for i, token in sorted(tokenizer.get_added_tokens_decoder().items()) if not token.special}
    plain.add_tokens(list(others.values()))
    if any(plain.token_to_id(token.content) != i for i, token in others.items()):
        # their ids are not the model's own, and special ones stand between them
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.encode_special_tokens = True
    return plain


class GgufTokenizer(BpeTokenizer):
    """The tokenizer that a GGUF file describes.

    Raises ModelError if the metadata lacks it or asks for a kind that is not implemented.
    """

    def __init__(self, file: GgufFile) -> None:
        self._path = file.path
        metadata = file.metadata
        self._tokens = _strings(file, "tokenizer.ggml.tokens")
        self.vocab_size = len(self._tokens)
        if (longest := max(self._tokens, key=len)) and len(longest) > LONGEST_TOKEN:
            raise ModelError(
                f"{file.path}: tokenizer.ggml.tokens: found a token of {len(longest)} characters, {shown(longest)}; "
                f"at most {LONGEST_TOKEN} are right"
            )
        types = _array(file, "tokenizer.ggml.token_type", self.vocab_size, "iu")
        self._types = [NORMAL] * self.vocab_size if types is None else types
        kind = metadata.get("tokenizer.ggml.model")
        if kind == "gpt2":
            tokenizer = self._byte_level(file)
        elif kind == "llama":
            tokenizer = self._sentencepiece(file)
        else:
            raise ModelError(f"{file.path}: tokenizer.ggml.model: found {shown(kind)}; supported: 'gpt2', 'llama'")
        bos, eos = self._special_id(metadata, "bos"), self._special_id(metadata, "eos")
        ends = {self._special_id(metadata, name) for name in ("eos", "eot", "eom")} - {None}
        ends |= {i for i, kind in enumerate(self._types) if kind == CONTROL and self._tokens[i] in END_TEXTS}
        default_bos = kind == "llama" or self._is_llama3(file)
        add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", default_bos))
        template = metadata.get("tokenizer.chat_template")
        super().__init__(
            tokenizer,
            Vocabulary(
                self._tokens,
                self._types,
                byte_level=kind == "gpt2",
                bos=bos,
                add_bos=add_bos,
                eos_ids=frozenset(i for i in ends if i is not None),
            ),
            ChatTemplate(
                template if isinstance(template, str) else None,
                bos_token=self._tokens[bos] if bos is not None else "",
                eos_token=self._tokens[eos] if eos is not None else "",
            ),
        )

    # -- building ----------------------------------------------------------------------------------------------------

    def _special_id(self, metadata: Mapping[str, Any], name: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < self.vocab_size:
            raise ModelError(
                f"{self._path}: tokenizer.ggml.{name}_token_id: found {value!r}; "
                f"the vocabulary has {self.vocab_size} tokens"
            )
        return value

    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in reversed(list(enumerate(self._tokens)))}

    def _byte_level(self, file: GgufFile) -> Tokenizer:
        vocabulary = self._ids()
        merges = []
        for merge in _strings(file, "tokenizer.ggml.merges"):
            left, separator, right = merge.partition(" ")
            if not (separator and left in vocabulary and right in vocabulary and left + right in vocabulary):
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
        vocabulary = self._ids()
        scores = _array(file, "tokenizer.ggml.scores", self.vocab_size, "f")
        if scores is None:
            raise ModelError(
                f"{file.path}: tokenizer.ggml.scores: must hold one score for each of {self.vocab_size} tokens"
            )
        self._types = [
            NORMAL if kind == BYTE and not is_byte_token(token) else kind
            for token, kind in zip(self._tokens, self._types, strict=True)
        ]
        ranked = sorted(
            (-float(scores[i]), i, token[:cut], token[cut:])
            for token, i in vocabulary.items()
            if self._types[i] == NORMAL
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        )
        unknown = next((self._tokens[i] for i, kind in enumerate(self._types) if kind == UNKNOWN), None)
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
        control = [i for i, kind in enumerate(self._types) if kind in (CONTROL, UNKNOWN)]
        tokenizer.add_special_tokens([AddedToken(self._tokens[i], special=True, normalized=False) for i in control])
        users = [i for i, kind in enumerate(self._types) if kind == USER_DEFINED]
        tokenizer.add_tokens([AddedToken(self._tokens[i], special=False, normalized=False) for i in users])


def is_byte_token(text: str) -> bool:
    """Whether this is how SentencePiece spells a byte: <0x0A>."""
    return re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) is not None


class _Stream:
    """See `berth_worker.model.interface.TokenStream`."""

    def __init__(self, tokenizer: BpeTokenizer, skip_special: bool) -> None:
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


def _array(file: GgufFile, key: str, count: int, kinds: str) -> list[Any] | None:
    """The numbers of an array with `count` entries of numpy's `kinds`; None if it is not there."""
    value = file.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        raise ModelError(f"{file.path}: {key}: found {shown(value)}; an array of numbers is right")
    if len(value) != count:
        raise ModelError(f"{file.path}: {key}: found {len(value)} entries for {count} tokens")
    found: list[Any] = value.tolist()
    return found
