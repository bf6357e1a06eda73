"""What does the engine need of a model?  One call a step, a paged KV cache, and a tokenizer; nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from berth_worker.engine.batch import BLOCK_TOKENS, Batch

if TYPE_CHECKING:
    import torch

    from berth_worker.model.config import LlamaConfig

__all__ = [
    "BLOCK_TOKENS",
    "Batch",
    "KVCache",
    "LoadedModel",
    "Logits",
    "Model",
    "ModelError",
    "Quantization",
    "TokenStream",
    "Tokenizer",
]

Quantization = Literal["Int8", "Int4", "BF16", "FP32"]
_LONGEST_MESSAGE = 600


class ModelError(Exception):
    """A model that cannot be served; the message is one line that names the file, the field, what was found and what
    would be right."""

    def __init__(self, message: str) -> None:
        # names come from the file: keep the line one line, printable and short
        line = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in message)
        super().__init__(line if len(line) <= _LONGEST_MESSAGE else line[: _LONGEST_MESSAGE - 3] + "...")


class KVCache(Protocol):
    """Keys and values of `num_blocks` blocks of BLOCK_TOKENS tokens, all layers.  Opaque to the engine."""

    num_blocks: int

    def copy_block(self, source: int, target: int) -> None:
        """Make the content of block `target` that of block `source`, in all layers."""
        ...


class Logits(NamedTuple):
    """What a step gives for each of the batch's output rows, on the CPU."""

    values: torch.Tensor
    """float32 [N, vocab_size]"""
    best: torch.Tensor
    """int32 [N], the token with the greatest logit: of equals the first; NaN counts as the greatest."""

    @staticmethod
    def of(values: torch.Tensor) -> Logits:
        """Logits whose best tokens are looked for here."""
        return Logits(values, values.argmax(-1).int())


class Model(Protocol):
    """A Llama that runs one Batch a call.

    Rows are independent: a row's logits do not depend, to the bit, on what else is in the batch, on how its prompt was
    cut into steps, or on the number of threads (the int8 kernels promise this; the plain-PyTorch path is only close).
    Not thread-safe: one step at a time.
    """

    config: LlamaConfig
    kv_bytes_per_block: int
    """Bytes that one block takes in new_cache, all layers, keys and values."""

    def new_cache(self, num_blocks: int) -> KVCache:
        """Allocate a cache of num_blocks * kv_bytes_per_block bytes.

        Raises ModelError if that is more than can be had.
        """
        ...

    def forward(self, batch: Batch, cache: KVCache) -> Logits:
        """Copy the batch's blocks, write the K and V of its tokens into the cache; return its output rows' logits.

        The result is fresh tensors.  Raises ValueError for a batch that contradicts itself, the model or the cache
        (token id, position, block id out of range), before anything is written.
        """
        ...


class TokenStream(Protocol):
    """Turns one sequence's tokens into text as they come; never gives half of a UTF-8 character."""

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        ...

    def flush(self) -> str:
        """The text still held back at the end: a cut character becomes U+FFFD."""
        ...


class Tokenizer(Protocol):
    eos_ids: frozenset[int]
    """Tokens that end a generation (end of text, end of turn)."""
    vocab_size: int
    control_ids: frozenset[int]
    """Tokens that stand for no text, whatever they are spelled like."""

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True, most: int | None = None
    ) -> list[int]:
        """Ids of text.  add_special_tokens puts BOS in front where the model wants one; with parse_special, the text of
        a control token such as <|im_end|> becomes that token (for prompts), without it stays plain text.

        Raises ValueError for a text of more than twice `most` ids, before it takes the memory for them all."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 that a token stands for: perhaps a part of a character; the text of a control token."""
        ...

    def stream(self, *, skip_special_tokens: bool = True) -> TokenStream: ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, object]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation, as text.  Raises ValueError if the model has no chat template or the template
        refuses the messages."""
        ...

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] = (),
        add_generation_prompt: bool = True,
        call: str | None = None,
        most: int | None = None,
    ) -> list[int]:
        """Ids of a conversation's prompt; with `call`, the answer is begun as a call of this tool, up to where its
        arguments come, a JSON object.  Control tokens come from the template alone: where messages or tools spell
        one, such as <|im_end|>, it stays plain text.  Raises ValueError as apply_chat_template and encode do."""
        ...

    def call_text(self, name: str) -> tuple[str, str]:
        """What stands before and after the arguments where an answer calls this tool."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything that `berth_worker.model.load` gives."""

    model: Model
    tokenizer: Tokenizer
    config: LlamaConfig
    name: str
    """The name to serve it under, such as "smollm2-135m-instruct"."""
    resident_bytes: int
    """Bytes of weights held in memory, embeddings included, KV cache not."""
    recipe: str
    """What the weights and activations were quantized to, in words, such as "w8-g64-a8-g32-kv8" or "fp32"."""
    path: str
    """Which path runs them: "kernels/avx2", "kernels/scalar", "torch" or "torch/cuda"."""
    cache_room_bytes: int | None = None
    """Bytes of GPU memory left for a KV cache once loaded; None: the cache is in the host's memory."""
