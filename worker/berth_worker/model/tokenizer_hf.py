"""What tokenizer does a Hugging Face folder describe?  tokenizer.json, checked before the `tokenizers` library sees it.

Taken from it: the model (BPE), added tokens, normalizer and pre-tokenizer.  Left out: truncation and padding, which
would cut prompts, and the post-processor, of which only the token that it puts in front is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from berth_worker.model.chat import ChatTemplate
from berth_worker.model.interface import ModelError
from berth_worker.model.json_file import Fields, read_object, shown
from berth_worker.model.tokenizer import (
    BYTE,
    CONTROL,
    END_TEXTS,
    LONGEST_TOKEN,
    NORMAL,
    USER_DEFINED,
    BpeTokenizer,
    Vocabulary,
    is_byte_token,
)

__all__ = ["HfTokenizer"]

_LARGEST = 64 << 20  # bytes of tokenizer.json; Llama 3's has 17 MB
_NORMALIZERS = ("Sequence", "Prepend", "Replace", "NFC", "NFD", "NFKC", "NFKD", "Strip")
_PRE_TOKENIZERS = ("Sequence", "Split", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace")


class HfTokenizer(BpeTokenizer):
    """The tokenizer of a folder with tokenizer.json, and beside it, where they are there: tokenizer_config.json,
    special_tokens_map.json, generation_config.json, config.json and chat_template.jinja.

    Raises ModelError, naming file and field, if it is not BPE (byte-level, or with byte fallback), or contradicts
    itself or the `vocab_size` rows of the embedding.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path}: no such file; transformers' save_pretrained writes it from a tokenizer.model")
        content = read_object(path, limit=_LARGEST)
        settings = _optional(folder / "tokenizer_config.json")
        model, added = _model(path, content, vocab_size), _added_tokens(path, content, vocab_size)
        byte_level = _uses(content.get("pre_tokenizer"), "ByteLevel") or _uses(content.get("decoder"), "ByteLevel")
        if not byte_level and not model.get("byte_fallback"):
            raise ModelError(f"{path}: model: found BPE that is neither byte-level nor has byte_fallback; one is right")
        tokenizer = _build(path, content, added)
        vocabulary: dict[str, int] = model["vocab"]
        tokens, kinds = _by_id(vocabulary, added, byte_fallback=not byte_level)
        specials = {**_optional(folder / "special_tokens_map.json"), **settings}
        bos = _token_id(specials.get("bos_token"), tokenizer)
        prefix = _prefix(content.get("post_processor"))
        ends = _end_ids(folder, len(tokens)) | {
            i for i, kind in enumerate(kinds) if kind == CONTROL and tokens[i] in END_TEXTS
        }
        eos = _token_id(specials.get("eos_token"), tokenizer)
        if bos is None and prefix is not None:
            bos = _token_id(prefix, tokenizer)
        stated = settings.get("add_bos_token")
        super().__init__(
            tokenizer,
            Vocabulary(
                tokens,
                kinds,
                byte_level=byte_level,
                bos=bos,
                add_bos=stated if isinstance(stated, bool) else prefix is not None,
                eos_ids=frozenset(ends if eos is None else ends | {eos}),
            ),
            ChatTemplate(
                _template(folder, settings),
                bos_token="" if bos is None else tokens[bos],
                eos_token="" if eos is None else tokens[eos],
            ),
        )


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _model(path: Path, content: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The BPE model, checked: ids within the embedding, merges of tokens, nothing random."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else model
        raise ModelError(f"{path}: model.type: found {shown(kind)}; supported: 'BPE'")
    fields = Fields(model, path, "model.")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            fields.refuse(name, "not supported; null is right")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not vocabulary:
        fields.refuse("vocab", "an id for each token is right")
    if not isinstance(merges, list):
        fields.refuse("merges", "a list is right")
    for token, i in vocabulary.items():
        if type(i) is not int or not 0 <= i < vocab_size:
            raise ModelError(
                f"{path}: model.vocab: found {shown(token)}: {shown(i)}; the embedding has {vocab_size} rows"
            )
        if len(token) > LONGEST_TOKEN:
            raise ModelError(f"{path}: model.vocab: found {shown(token)}; at most {LONGEST_TOKEN} characters are right")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ModelError(f"{path}: model.merges: found {shown(merge)}; two tokens are right")
        left, right = pair
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise ModelError(f"{path}: model.merges: found {shown(merge)}; its parts and sum must be tokens")
    return model


def _added_tokens(path: Path, content: dict[str, Any], vocab_size: int) -> list[dict[str, Any]]:
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise ModelError(f"{path}: added_tokens: found {shown(added)}; a list is right")
    for token in added:
        known = isinstance(token, dict) and type(token.get("id")) is int and isinstance(token.get("content"), str)
        if not known or not token["content"] or len(token["content"]) > LONGEST_TOKEN:
            raise ModelError(f"{path}: added_tokens: found {shown(token)}; an id and its content are right")
        if not 0 <= token["id"] < vocab_size:
            raise ModelError(f"{path}: added_tokens: found {shown(token)}; the embedding has {vocab_size} rows")
    return added


def _build(path: Path, content: dict[str, Any], added: list[dict[str, Any]]) -> Tokenizer:
    _check_steps(path, "normalizer", content.get("normalizer"), _NORMALIZERS)
    _check_steps(path, "pre_tokenizer", content.get("pre_tokenizer"), _PRE_TOKENIZERS)
    kept = {name: content.get(name) for name in ("version", "added_tokens", "normalizer", "pre_tokenizer", "model")}
    try:
        tokenizer = Tokenizer.from_str(json.dumps(kept | {"version": "1.0"}))
    except BaseException as error:
        # errors of the library are plain Exceptions; its panics are BaseExceptions of a class that cannot be imported
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelError(f"{path}: refused by the tokenizers library: {error}") from error
        raise
    for token in added:
        if tokenizer.token_to_id(token["content"]) != token["id"]:
            raise ModelError(f"{path}: added_tokens: found {shown(token)}; its id contradicts the vocabulary")
    return tokenizer


def _check_steps(path: Path, field: str, step: Any, allowed: tuple[str, ...], depth: int = 0) -> None:
    """Raises ModelError for a step of a kind that no Llama has."""
    if step is None:
        return
    kind = step.get("type") if isinstance(step, dict) else step
    if not isinstance(kind, str) or kind not in allowed or depth > 2:
        raise ModelError(f"{path}: {field}: found {shown(kind)}; supported: {', '.join(allowed)}")
    if kind == "Sequence":
        inner = step.get("normalizers" if field == "normalizer" else "pretokenizers")
        if not isinstance(inner, list) or len(inner) > 32:
            raise ModelError(f"{path}: {field}: found {shown(inner)}; a list of steps is right")
        for item in inner:
            _check_steps(path, field, item, allowed, depth + 1)


def _by_id(
    vocabulary: dict[str, int], added: list[dict[str, Any]], *, byte_fallback: bool
) -> tuple[list[str], list[int]]:
    size = 1 + max([*vocabulary.values(), *(token["id"] for token in added)])
    tokens, kinds = [""] * size, [NORMAL] * size
    for text, i in vocabulary.items():
        tokens[i] = text
        if byte_fallback and is_byte_token(text):
            kinds[i] = BYTE
    for token in added:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token.get("special") is True else USER_DEFINED
    return tokens, kinds


def _uses(step: Any, kind: str, depth: int = 0) -> bool:
    """Whether a step of the pipeline, or one inside it, is of this kind."""
    if not isinstance(step, dict) or depth > 2:
        return False
    lists = [step.get(name) for name in ("pretokenizers", "decoders")]
    inner = [item for found in lists if isinstance(found, list) for item in found]
    return step.get("type") == kind or any(_uses(item, kind, depth + 1) for item in inner)


def _prefix(processor: Any, depth: int = 0) -> str | None:
    """The token that the post-processor puts in front of a text."""
    if not isinstance(processor, dict) or depth > 2:
        return None
    if processor.get("type") == "Sequence" and isinstance(processor.get("processors"), list):
        return next(filter(None, (_prefix(item, depth + 1) for item in processor["processors"])), None)
    single = processor.get("single")
    if processor.get("type") != "TemplateProcessing" or not isinstance(single, list) or not single:
        return None
    special = single[0].get("SpecialToken") if isinstance(single[0], dict) else None
    token = special.get("id") if isinstance(special, dict) else None
    return token if isinstance(token, str) else None


def _token_id(value: Any, tokenizer: Tokenizer) -> int | None:
    """Of a special token as tokenizer_config.json writes it: its text, or an object with its content."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        return None
    try:
        found: int | None = tokenizer.token_to_id(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    return found


def _end_ids(folder: Path, size: int) -> set[int]:
    """Tokens that end a generation, as generation_config.json and config.json say."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _optional(folder / name).get("eos_token_id")
        for i in value if isinstance(value, list) else [value]:
            if i is None:
                continue
            if type(i) is not int or not 0 <= i < size:
                raise ModelError(f"{folder / name}: eos_token_id: found {shown(i)}; the vocabulary has {size} tokens")
            found.add(i)
    return found


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: chat_template.jinja, or what tokenizer_config.json says, there the default of several."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            with path.open("rb") as file:
                return file.read(1 << 20).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
    value = settings.get("chat_template")
    if isinstance(value, list):
        named = [item for item in value if isinstance(item, dict) and item.get("name") == "default"]
        value = named[0].get("template") if named else None
    return value if isinstance(value, str) else None
