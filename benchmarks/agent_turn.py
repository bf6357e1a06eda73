"""How long does an agent's turn take beside llama-server: a cached history, a little new text, an answer that quotes it?

3,000 tokens of history, which both servers have in their caches; 60 new tokens, which begin to repeat a passage of the
history; 80 tokens out, greedy, which go on quoting it (how many do is in the figures).  A turn is timed at its client,
from sending the request to the last token.  Every turn quotes another passage, so that nothing but the history is cached.
Both sides with their best speculation and both without; llama-server's settings and speculation are scanned first.

    python benchmarks/agent_turn.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import models
from _common import Report, interleave, options, progress
from berth_worker.model.load import open_checkpoint
from berth_worker.model.sources import resolve
from llamacpp_runs import Setting
from peers import LLAMA_CPP, english, llama_cpp
from servers import BerthServer, LlamaServer, Server, Turn

HISTORY, NEW, OUT = 3000, 60, 80

SPECULATION = {
    "default": ["--spec-default"],
    "ngram-simple": ["--spec-type", "ngram-simple"],
    "ngram-simple 6/24": [
        *("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "6", "--spec-ngram-simple-size-m", "24")
    ],
    "ngram-simple 8/80": [
        *("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "8", "--spec-ngram-simple-size-m", "80")
    ],
    "ngram-map-k": ["--spec-type", "ngram-map-k"],
    "ngram-map-k 6/24": [
        *("--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-n", "6", "--spec-ngram-map-k-size-m", "24")
    ],
    "ngram-map-k4v": ["--spec-type", "ngram-map-k4v"],
    "ngram-mod 8/8/64": [
        *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "8", "--spec-ngram-mod-n-min", "8")
    ],
    "ngram-cache": ["--spec-type", "ngram-cache"],
}
"""llama-server's kinds of speculation without a draft model, at their defaults and tuned to answers of 80 tokens."""


class Turns:
    """Turns over one history; the same for every server that asks for the same numbers."""

    def __init__(self) -> None:
        _, self._tokenizer = open_checkpoint(resolve(models.EMBEDDED).path)
        self._text = self._tokenizer.encode(english().read_text(), add_special_tokens=False)
        self.history = self._text[:HISTORY]

    def prompt(self, number: int) -> list[int]:
        """History and new tokens: an instruction, and the first words of passage `number`."""
        words = f"\n\nQuestion {number}: repeat one passage of the text above, word for word.\n\nAnswer:"
        asked = self._tokenizer.encode(words, add_special_tokens=False)
        begin = self._begin(number)
        return self.history + asked + self._text[begin : begin + NEW - len(asked)]

    def quoted(self, number: int, tokens: tuple[int, ...]) -> float:
        """Share of an answer that is the passage as it goes on, position by position."""
        words = len(self.prompt(number)) - HISTORY
        asked = f"\n\nQuestion {number}: repeat one passage of the text above, word for word.\n\nAnswer:"
        given = words - len(self._tokenizer.encode(asked, add_special_tokens=False))
        begin = self._begin(number) + given
        passage = self._text[begin : begin + len(tokens)]
        return sum(a == b for a, b in zip(tokens, passage, strict=False)) / len(tokens)

    @staticmethod
    def _begin(number: int) -> int:
        return 150 + number * 389 % (HISTORY - 400)


class Client:
    """A server with the history in its cache, and what its turns gave."""

    def __init__(self, server: Server, turns: Turns) -> None:
        self._server, self._turns, self._number = server, turns, 0
        self.done: list[Turn] = []
        self.shares: list[float] = []
        server.turn(turns.history, 1)
        server.turn(turns.prompt(99), OUT)

    def run(self) -> float:
        """Turns a second: one over the time of the next turn."""
        turn = self._server.turn(self._turns.prompt(self._number), OUT)
        if len(turn.tokens) != OUT:
            raise RuntimeError(f"{len(turn.tokens)} tokens came; {OUT} were asked for")
        self.done.append(turn)
        self.shares.append(self._turns.quoted(self._number, turn.tokens))
        self._number += 1
        return 1 / turn.seconds

    def close(self) -> None:
        self._server.close()


def scan(turns: Turns, threads: int, count: int) -> tuple[Setting, str]:
    """llama-server's fastest setting without speculation, and on top of it its fastest speculation."""

    def speed(setting: Setting, more: list[str], what: str) -> float:
        progress(f"scan: {setting} {what}")
        try:
            client = Client(LlamaServer(models.small("Q8_0"), setting, threads, more), turns)
        except RuntimeError:
            return 0.0
        try:
            return statistics.median(client.run() for _ in range(count))
        except RuntimeError:
            return 0.0
        finally:
            client.close()

    chosen = Setting()
    for others in (
        [replace(chosen, variant=variant) for variant in llama_cpp().variants],
        [chosen, replace(chosen, flash=False), replace(chosen, kv="q8_0")],
        [chosen, replace(chosen, huge_pages=True)],
    ):
        changed = [replace(chosen, **_differences(other)) for other in others]
        chosen = max(dict.fromkeys(changed), key=lambda setting: speed(setting, [], ""))
    best = max(SPECULATION, key=lambda name: speed(chosen, SPECULATION[name], name))
    progress("")
    return chosen, best


def _differences(setting: Setting) -> dict[str, object]:
    plain = Setting()
    return {key: value for key, value in vars(setting).items() if value != getattr(plain, key)}


def main() -> None:
    chosen = options(__doc__).parse_args()
    rounds = 2 if chosen.quick else 9
    report = Report(chosen.threads)
    report.note("peer", f"llama-server of {LLAMA_CPP}, 135M Q8_0, prompt cache on")
    turns = Turns()
    if chosen.quick:
        setting, speculation = Setting(flash=False), "ngram-simple 6/24"
    else:
        setting, speculation = scan(turns, chosen.threads, 3)
    report.note("llamacpp", str(setting))
    report.note("llamacpp_speculation", speculation)

    file = models.small("Q8_0")
    starts: dict[str, Callable[[], Server]] = {
        "berth_agent_turn": lambda: BerthServer(models.EMBEDDED, chosen.threads),
        "llamacpp_agent_turn": lambda: LlamaServer(file, setting, chosen.threads, SPECULATION[speculation]),
        "berth_agent_turn_nospec": lambda: BerthServer(models.EMBEDDED, chosen.threads, ["--speculation", "off"]),
        "llamacpp_agent_turn_nospec": lambda: LlamaServer(file, setting, chosen.threads),
    }
    clients: dict[str, Client] = {}
    try:
        for name, start in starts.items():
            clients[name] = Client(start(), turns)
        values = interleave(rounds, {name: client.run for name, client in clients.items()}, "agent turn")
    finally:
        for client in clients.values():
            client.close()

    for name, client in clients.items():
        report.figure(f"{name}_ms", 1000 / statistics.median(values[name]))
        report.figure(f"{name}_best_ms", 1000 / max(values[name]))
        report.figure(f"{name}_first_token_ms", 1000 * statistics.median(t.first_token_seconds for t in client.done))
        report.figure(f"{name}_quoted_percent", 100 * statistics.mean(client.shares))
        report.figure(f"{name}_cached_tokens", statistics.median(t.cached for t in client.done))
    for kind in ("", "_nospec"):
        peer = {speculation if not kind else "none": values[f"llamacpp_agent_turn{kind}"]}
        report.ratio(f"agent_turn{kind}_vs_llamacpp", values[f"berth_agent_turn{kind}"], peer)
    same = [a.tokens == b.tokens for a, b in _pairs(clients, "berth")]
    report.figure("berth_agent_turn_speculation_same_tokens_percent", 100 * statistics.mean(same))
    report.write(chosen.json)


def _pairs(clients: dict[str, Client], side: str) -> list[tuple[Turn, Turn]]:
    return list(zip(clients[f"{side}_agent_turn"].done, clients[f"{side}_agent_turn_nospec"].done, strict=True))


if __name__ == "__main__":
    main()
