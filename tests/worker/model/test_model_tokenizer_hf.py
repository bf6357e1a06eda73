"""Does a tokenizer.json give the ids that transformers gives, and does every other one end in one clear line?"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from berth_worker.model import ModelError
from berth_worker.model.gguf_file import GgufFile
from berth_worker.model.tokenizer import GgufTokenizer
from berth_worker.model.tokenizer_hf import HfTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = [
    "",
    " two  spaces ",
    "The year 2026: 3.14159!",
    "naïve 日本語 👩‍👩‍👧",
    "<|im_start|>user\nhi<|im_end|>\n",
    "don't\t\n x",
]
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def write(folder: Path, **files: Any) -> Path:
    """Names are file names with _json for .json; values are objects, or text."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / (name.removesuffix("_json") + ".json" if name.endswith("_json") else name)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def smollm(real_file: GgufFile, tmp_path_factory: pytest.TempPathFactory) -> tuple[GgufTokenizer, HfTokenizer, Path]:
    """The real vocabulary from its GGUF file, and as the tokenizer.json that the library writes of it."""
    ours = GgufTokenizer(real_file)
    content = json.loads(ours._tokenizer.to_str())
    folder = write(
        tmp_path_factory.mktemp("smollm"),
        tokenizer_json=content,
        tokenizer_config_json={
            "bos_token": "<|im_start|>",
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", **SPECIAL},
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": real_file.metadata["tokenizer.chat_template"],
        },
        generation_config_json={"eos_token_id": [2]},
    )
    return ours, HfTokenizer(folder, ours.vocab_size), folder


def test_ids_of_the_real_vocabulary_are_those_of_transformers(
    smollm: tuple[GgufTokenizer, HfTokenizer, Path],
) -> None:
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - takes seconds

    _, found, folder = smollm
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in TEXTS:
        assert found.encode(text) == theirs.encode(text), text
    messages = [{"role": "user", "content": "Hi"}]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert found.apply_chat_template(messages) == expected


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), parse=st.booleans())
def test_a_tokenizer_json_and_a_gguf_file_of_the_same_vocabulary_agree(
    smollm: tuple[GgufTokenizer, HfTokenizer, Path], text: str, parse: bool
) -> None:
    gguf, folder, _ = smollm
    ids = folder.encode(text, parse_special=parse)
    assert ids == gguf.encode(text, parse_special=parse)
    for skip in (True, False):
        assert folder.decode(ids, skip_special_tokens=skip) == gguf.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("order", [["<u>", "<end>", "<tool>"], ["<end>", "<u>", "<tool>"], ["<u>", "<tool>", "<end>"]])
def test_only_special_tokens_become_text_where_they_are_not_to_be_parsed(
    tiny: Any, tmp_path: Path, order: list[str]
) -> None:
    content = tiny.tokenizer_json()
    first = tiny.VOCAB - 1
    content["added_tokens"] = [
        {"id": first + n, "content": text, **SPECIAL, "special": text == "<end>"} for n, text in enumerate(order)
    ]
    found = HfTokenizer(write(tmp_path, tokenizer_json=content), first + 3)
    ids = {text: first + n for n, text in enumerate(order)}
    plain = found.encode("a<u>b<end><tool><end", parse_special=False)
    parsed = found.encode("a<u>b<end><tool><end")
    assert [i for i in plain if i >= first] == [ids["<u>"], ids["<tool>"]]
    assert [i for i in parsed if i >= first] == [ids["<u>"], ids["<end>"], ids["<tool>"]]


def test_ends_are_those_of_the_generation_the_tokenizer_and_the_vocabulary(
    smollm: tuple[GgufTokenizer, HfTokenizer, Path],
) -> None:
    gguf, folder, _ = smollm
    assert folder.eos_ids == gguf.eos_ids == {0, 2}
    assert folder.vocab_size == gguf.vocab_size


def sentencepiece_json() -> dict[str, Any]:
    """As transformers writes Llama 2's: byte fallback, a low line in front and for each space, <s> in front."""
    pieces = ["▁", "a", "b", "c", "▁a", "ab", "bc", "▁ab"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i], **SPECIAL} for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": template,
            "pair": template,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": ["▁ a", "a b", "b c", "▁a b"],
        },
    }


def test_byte_fallback_gives_the_ids_of_transformers_and_the_text_back(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - takes seconds

    folder = write(tmp_path, tokenizer_json=sentencepiece_json(), special_tokens_map_json={"eos_token": "</s>"})
    found, theirs = HfTokenizer(folder, 300), PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ("ab", "a bc é", "☃ abc  a", "x</s>y"):
        assert found.encode(text) == theirs.encode(text), text
        if "</s>" not in text:
            assert found.decode(found.encode(text)) == " " + text
    assert found.encode("ab", add_special_tokens=False) == theirs.encode("ab", add_special_tokens=False)
    assert found.eos_ids == {2}
    assert 2 not in found.encode("x</s>y", parse_special=False)


@pytest.mark.parametrize("stated", [True, False])
def test_the_configuration_says_whether_a_text_begins_with_bos(tmp_path: Path, stated: bool) -> None:
    settings_ = {"add_bos_token": stated, "bos_token": "<s>"}
    folder = write(tmp_path, tokenizer_json=sentencepiece_json(), tokenizer_config_json=settings_)
    assert (HfTokenizer(folder, 300).encode("a")[0] == 1) == stated


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config_json": {"chat_template": CHAT, "eos_token": "<end>"}}, "user: hi<end>"),
        ({"tokenizer_config_json": {"chat_template": "no"}, "chat_template.jinja": "yes"}, "yes"),
        (
            {
                "tokenizer_config_json": {
                    "chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "y"}]
                }
            },
            "y",
        ),
        ({}, None),
    ],
)
def test_the_chat_template_is_the_one_that_transformers_takes(
    tiny: Any, tmp_path: Path, files: dict[str, Any], expected: str | None
) -> None:
    tokenizer = HfTokenizer(write(tmp_path, tokenizer_json=tiny.tokenizer_json(), **files), tiny.VOCAB)
    messages = [{"role": "user", "content": "hi"}]
    if expected is None:
        with pytest.raises(ValueError, match="no chat template"):
            tokenizer.apply_chat_template(messages)
    else:
        assert tokenizer.apply_chat_template(messages) == expected


def test_a_prompt_is_never_truncated(tiny: Any, tmp_path: Path) -> None:
    content = tiny.tokenizer_json()
    assert content["truncation"]["max_length"] == 4
    assert len(HfTokenizer(write(tmp_path, tokenizer_json=content), tiny.VOCAB).encode("c" * 50)) == 50


def at(*path: Any) -> Callable[[dict[str, Any], Any], None]:
    def put(content: dict[str, Any], value: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return put


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        (at("model", "type"), "WordPiece", "model.type: found 'WordPiece'; supported: 'BPE'"),
        (at("model", "vocab"), [], r"model.vocab: found \[\]"),
        (at("model", "vocab", "ab"), 75, "model.vocab: found 'ab': 75; the embedding has 75 rows"),
        (at("model", "vocab", "ab"), True, "model.vocab: found 'ab': True"),
        (at("model", "vocab", "x" * 600), 1, "at most 512 characters are right"),
        (at("model", "merges"), ["a"], "model.merges: found 'a'; two tokens are right"),
        (at("model", "merges"), [["a", "c"]], r"model.merges: found \['a', 'c'\]; its parts and sum must be tokens"),
        (at("model", "dropout"), 0.1, "model.dropout: found 0.1; not supported"),
        (at("model", "end_of_word_suffix"), "</w>", "end_of_word_suffix: found '</w>'"),
        (at("model", "unk_token"), 5, "refused by the tokenizers library"),
        (at("added_tokens", 0, "id"), 80, "added_tokens: found .*; the embedding has 75 rows"),
        (at("added_tokens", 0, "id"), 2, "its id contradicts the vocabulary"),
        (at("added_tokens", 0), "x", "added_tokens: found 'x'; an id and its content are right"),
        (at("normalizer"), {"type": "Precompiled"}, "normalizer: found 'Precompiled'; supported: Sequence"),
        (at("pre_tokenizer"), {"type": "BertPreTokenizer"}, "pre_tokenizer: found 'BertPreTokenizer'"),
        (
            at("pre_tokenizer"),
            {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
            "refused",
        ),
        (at("decoder"), None, None),
    ],
)
def test_what_is_wrong_with_a_tokenizer_is_said(
    tiny: Any, tmp_path: Path, where: Callable[[dict[str, Any], Any], None], value: Any, says: str | None
) -> None:
    content = copy.deepcopy(tiny.tokenizer_json())
    where(content, value)
    folder = write(tmp_path, tokenizer_json=content)
    if says is None:
        HfTokenizer(folder, tiny.VOCAB)
        return
    with pytest.raises(ModelError) as raised:
        HfTokenizer(folder, tiny.VOCAB)
    assert re.search(says, str(raised.value)), raised.value
    assert str(folder / "tokenizer.json") in str(raised.value)


def test_a_folder_without_tokenizer_json_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer.json: no such file; transformers' save_pretrained writes it"):
        HfTokenizer(tmp_path, 10)
