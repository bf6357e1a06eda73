"""How long does an agent's turn take beside llama-server: a cached history, some new text, an answer that quotes it?

3,000 tokens of history, which both servers have in their caches; 60 new tokens, which begin to repeat a passage of the
history; 80 tokens out, greedy, which go on quoting it (how many do is in the figures).  A turn is timed at its client,
from sending the request to the last token.  Every turn quotes another passage, so that only the history is cached.
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
_PASSAGE = 150
_SKIPPED, _SKIPPED_TO = 12_000, 20_000  # characters: past the report's table of contents
_RUN = 8

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
    "ngram-mod 8/8/64": [*("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "8", "--spec-ngram-mod-n-min", "8")],
    "ngram-cache": ["--spec-type", "ngram-cache"],
}
"""llama-server's kinds of speculation without a draft model, at their defaults and tuned to answers of 80 tokens."""


class Turns:
    """Turns over one history; the same for every server that asks for the same numbers.

    The history is a report in numbered passages, each of which came three times, as files and logs that an agent reads
    again do: after that even a model of 135M quotes, which it does not from a single reading.
    """

    def __init__(self) -> None:
        _, self._tokenizer = open_checkpoint(resolve(models.EMBEDDED).path)
        words = self._encode(english().read_text()[_SKIPPED:_SKIPPED_TO])
        self._passages = [words[begin : begin + _PASSAGE] for begin in range(0, len(words), _PASSAGE)]
        self.history: list[int] = []
        for index, passage in enumerate(self._passages):
            self.history += 3 * [*self._encode(f"\n\n[{index}] "), *passage]
        self._count = HISTORY // (len(self.history) // len(self._passages))
        """Passages that are in the history whole."""
        self.history = self.history[:HISTORY]

    def prompt(self, number: int) -> list[int]:
        """History and new tokens: a passage's number and its first words, each `number` beginning elsewhere."""
        passage, skipped = number % self._count, number // self._count * 4
        label = self._encode(f"\n\n[{passage}] ")
        return self.history + label + self._passages[passage][skipped : skipped + NEW - len(label)]

    def quoted(self, tokens: tuple[int, ...]) -> float:
        """Share of an answer's tokens that stand in runs of 8 or more that the history has too."""
        runs = {tuple(self.history[i : i + _RUN]) for i in range(len(self.history) - _RUN + 1)}
        hits = [i for i in range(len(tokens) - _RUN + 1) if tokens[i : i + _RUN] in runs]
        return len({i + offset for i in hits for offset in range(_RUN)}) / len(tokens)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


class Client:
    """A server with the history in its cache, and what its turns gave."""

    def __init__(self, server: Server, turns: Turns) -> None:
        self._server, self._turns, self._number = server, turns, 0
        self.done: list[Turn] = []
        self.shares: list[float] = []
        server.turn(turns.history, 1)
        server.turn(turns.prompt(30), OUT)

    def run(self) -> float:
        """Turns a second: one over the time of the next turn."""
        turn = self._server.turn(self._turns.prompt(self._number), OUT)
        if len(turn.tokens) != OUT:
            raise RuntimeError(f"{len(turn.tokens)} tokens came; {OUT} were asked for")
        self.done.append(turn)
        self.shares.append(self._turns.quoted(turn.tokens))
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

    def fastest(settings: list[Setting]) -> Setting:
        return max(settings, key=lambda setting: speed(setting, [], ""))

    chosen = fastest([Setting(variant=variant) for variant in llama_cpp().variants])
    chosen = fastest([chosen, replace(chosen, flash=False), replace(chosen, kv="q8_0")])
    chosen = fastest([chosen, replace(chosen, huge_pages=True)])
    best = max(SPECULATION, key=lambda name: speed(chosen, SPECULATION[name], name))
    progress("")
    return chosen, best


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
