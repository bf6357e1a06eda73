"""Does text become the ids that the model was trained on, and back?  Judged by code that shares nothing with ours."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import regex
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.tokenizer import GgufTokenizer, byte_level_alphabet
from hypothesis import given, settings
from hypothesis import strategies as st

TRICKY = [
    "",
    " ",
    "  leading and trailing  ",
    "tabs\tand\n\n\nnewlines \r\n mixed \u00a0 no-break",
    "The year 2026, 3.14159 and 1,000,000.",
    "don't we'll I'M they'Ve",
    "naïve café Straße Æsop",
    "日本語の文章です。 中文也是。 한국어도",
    "مرحبا بالعالم שלום עולם",
    "👩‍👩‍👧‍👦 🇫🇷 e\u0301 \u200b zero width",
    "snake_case camelCase __init__(self, *args) -> None: # !!",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|im_start|not a token|>",
    "x" * 300,
    " " * 37 + "indented",
    "½ ⅓ ² ₃ Ⅷ ٣ ৪",
]


@pytest.fixture(scope="module")
def tokenizer(real_file: GgufFile) -> GgufTokenizer:
    return GgufTokenizer(real_file)


def test_while_a_long_text_is_encoded_python_goes_on(tokenizer: GgufTokenizer) -> None:
    turns, begun, ended = 0, [], []

    def encode() -> None:
        begun.append(turns)
        tokenizer.encode("word " * 200_000)
        ended.append(turns)

    thread = threading.Thread(target=encode)
    thread.start()
    while thread.is_alive():
        time.sleep(0.0001)  # lets go of the lock, which this thread then has to get again
        turns += 1
    assert ended[0] - begun[0] > 10


@pytest.mark.parametrize("text", [*(text * (200_000 // len(text)) for text in TRICKY if text)])
def test_a_text_that_fits_is_never_too_long(tokenizer: GgufTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.encode(text, most=len(ids)) == ids
    few = len(ids) // 3
    with pytest.raises(ValueError, match=f"more than {2 * few} tokens are too many; at most {few} are right"):
        tokenizer.encode(text, most=few)
    with pytest.raises(ValueError, match="tokens are too many"):
        tokenizer.encode_chat([{"role": "user", "content": text}], most=few)


class ByteLevelReference:
    """GPT-2's algorithm as published (openai/gpt-2, encoder.py), with SmolLM's rule that each digit stands alone."""

    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, file: GgufFile) -> None:
        self.ids = {token: i for i, token in enumerate(file.metadata["tokenizer.ggml.tokens"])}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(file.metadata["tokenizer.ggml.merges"])}
        self.symbols = {byte: character for character, byte in byte_level_alphabet().items()}
        types = file.metadata["tokenizer.ggml.token_type"]
        self.special = [t for t, i in self.ids.items() if types[i] == 3]

    def word(self, text: str) -> list[int]:
        # bytes that training never saw have no token, nor does one stand for them: they vanish, as in transformers
        parts = [self.symbols[byte] for byte in text.encode() if self.symbols[byte] in self.ids]
        while len(parts) > 1:
            rank, at = min((self.ranks.get((parts[i], parts[i + 1]), 1 << 30), i) for i in range(len(parts) - 1))
            if rank == 1 << 30:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self.ids[part] for part in parts]

    def encode(self, text: str, parse_special: bool = True) -> list[int]:
        pieces = [text]
        if parse_special:
            pieces = regex.split("(" + "|".join(map(regex.escape, self.special)) + ")", text)
        found: list[int] = []
        for piece in pieces:
            if parse_special and piece in self.special:
                found.append(self.ids[piece])
                continue
            for part in regex.split(r"(\p{N})", piece):
                for match in self.pattern.finditer(part):
                    found += self.word(match.group())
        return found


@pytest.mark.parametrize("text", TRICKY)
def test_ids_of_tricky_strings_are_those_of_the_published_algorithm(
    tokenizer: GgufTokenizer, real_file: GgufFile, text: str
) -> None:
    reference = ByteLevelReference(real_file)
    assert tokenizer.encode(text) == reference.encode(text)
    assert tokenizer.encode(text, parse_special=False) == reference.encode(text, parse_special=False)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_ids_of_any_string_are_those_of_the_published_algorithm(
    tokenizer: GgufTokenizer, reference: ByteLevelReference, text: str
) -> None:
    assert tokenizer.encode(text) == reference.encode(text)


@pytest.fixture(scope="module")
def reference(real_file: GgufFile) -> ByteLevelReference:
    return ByteLevelReference(real_file)


def test_ids_are_those_of_transformers(tokenizer: GgufTokenizer, real_file: GgufFile) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds

    theirs = AutoTokenizer.from_pretrained(str(real_file.path.parent), gguf_file=real_file.path.name)
    # from GGUF, transformers takes GPT-2's splitter, blind to SmolLM's rule for digits: for ASCII digits the vocabulary
    # leads to the same ids, for others it does not
    for text in TRICKY:
        if text != "½ ⅓ ² ₃ Ⅷ ٣ ৪":
            assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False), text


SEEN = st.characters(exclude_categories=["Cs"], exclude_characters="\x04\x06\x13\x14\x16\x1d", max_codepoint=0x3FFFF)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=SEEN, max_size=80))
def test_text_survives_the_round_trip_and_a_stream_gives_the_same_in_whole_characters(
    tokenizer: GgufTokenizer, text: str
) -> None:
    ids = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == text
    assert stream.flush() == ""


def test_a_character_cut_at_the_end_of_a_stream_is_marked_and_not_before(tokenizer: GgufTokenizer) -> None:
    ids = tokenizer.encode("日本 👩")
    stream = tokenizer.stream()
    text = "".join(stream.push(token) for token in ids[:-1])
    assert "\ufffd" not in text
    assert text.startswith("日本")
    assert stream.flush() == "\ufffd"


def test_control_tokens_are_left_out_of_text_unless_asked_for(tokenizer: GgufTokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>")
    assert tokenizer.decode(ids) == "user\nhi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>user\nhi<|im_end|>"


def test_a_generation_ends_at_the_end_of_a_turn_and_of_a_text(tokenizer: GgufTokenizer) -> None:
    assert tokenizer.eos_ids == {0, 2}  # <|endoftext|>, <|im_end|>


def test_the_chat_template_gives_the_prompt_the_model_was_trained_on(tokenizer: GgufTokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    prompt = tokenizer.apply_chat_template([*messages, {"role": "user", "content": "Bye"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for x in %}", "chat template refuses"),
        ("{{ ''.__class__.__mro__ }}", "chat template refuses"),
        ("{% for i in range(1000000000) %}{% endfor %}", "chat template refuses"),
        ("{{ messages[0].content + 1 }}", "chat template refuses"),
        ("{{ 1 // 0 }}", "chat template refuses"),
        ("{{ messages[0].content.index('z') }}", "chat template refuses"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template refuses"),
    ],
)
def test_a_template_that_is_missing_broken_or_hostile_is_a_value_error(
    tiny: Any, tmp_path: Path, template: str | None, says: str
) -> None:
    shape = tiny.Shape(layers=1)
    metadata = {} if template is None else {"tokenizer.chat_template": template}
    path = tiny.write_gguf(tmp_path / "tiny.gguf", shape, tiny.random_state(shape), metadata=metadata)
    with pytest.raises(ValueError, match=says):
        GgufTokenizer(GgufFile(path)).apply_chat_template([{"role": "user", "content": "hi"}])


# -- SentencePiece ("llama" type) --------------------------------------------------------------------------------------

PIECES = ["▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "▁ab", "ca", "▁abc", "aa", "▁c", "cab"]


@pytest.fixture(scope="module")
def sentencepiece(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> GgufTokenizer:
    """A small vocabulary as in Llama 2: <unk>, <s>, </s>, 256 bytes, pieces whose scores are their merge ranks."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(PIECES))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    shape = tiny.Shape(layers=1)
    path = tmp_path_factory.mktemp("spm") / "tiny.gguf"
    return GgufTokenizer(GgufFile(tiny.write_gguf(path, shape, tiny.random_state(shape), metadata=metadata)))


def sentencepiece_reference(text: str) -> list[int]:
    """llama.cpp's llm_tokenizer_spm: again and again merge the neighbours whose union has the best score."""
    scores = {piece: -float(i) for i, piece in enumerate(PIECES)}
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        options = [(-scores[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in scores]
        if not options:
            break
        _, at = min(options)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids: list[int] = []
    for part in parts:
        ids += [259 + PIECES.index(part)] if part in scores else [3 + byte for byte in part.encode()]
    return ids


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="abc é☃", max_size=12))
def test_sentencepiece_ids_are_those_of_the_published_algorithm(sentencepiece: GgufTokenizer, text: str) -> None:
    assert sentencepiece.encode(text, add_special_tokens=False) == sentencepiece_reference(text)
    assert sentencepiece.encode(text) == [1, *sentencepiece_reference(text)]


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="abc é☃", min_size=1, max_size=12))
def test_sentencepiece_text_survives_with_the_space_that_encoding_puts_in_front(
    sentencepiece: GgufTokenizer, text: str
) -> None:
    assert sentencepiece.decode(sentencepiece.encode(text)) == " " + text
