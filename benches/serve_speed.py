"""Speed of servers under load, as a table in Markdown: tokens per second of all clients, and time to first tokens.

    python benches/serve_speed.py \
        --server ikq='ikq serve -m model.gguf -t 2 -np 16 -c 1024 --port {port}' \
        --server ik='PATH/llama-server -m model.gguf -t 2 -np 16 -c 16384 --port {port}' \
        --server other=http://127.0.0.1:8081

A server is a command, which is started for its turn and ended behind it, or an address of one that runs. `-c` of
llama-server is for all its slots together. Every request has a prompt of random tokens that no other one has, the
same for all servers, and asks for exactly so many tokens, greedily, whatever the model wants to end. Servers take
turns; numbers are medians over the turns. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

PATHS = ("/completion", "/v1/completions")


@dataclass
class Run:
    """Requests of some clients at a time.

    Attributes:
        seconds: From the first request to the end of the last reply.
        n_tokens: Tokens of all replies.
        firsts: Seconds from each request to its first token.
        gaps: Seconds between the tokens of a text.
    """

    seconds: float = 0.0
    n_tokens: int = 0
    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


def prompt_of(rng: random.Random, n: int, low: int, high: int) -> list[int]:
    """Random tokens; no two prompts begin alike for long."""
    return [rng.randrange(low, high) for _ in range(n)]


def ask(url: str, path: str, prompt: list[int], n: int, timeout: float) -> tuple[int, float, list[float]]:
    """Sends a request and reads the reply; the number of its tokens, and when each part came."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
    body = {
        "prompt": prompt,
        "n_predict": n,
        "max_tokens": n,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.perf_counter()
    times: list[float] = []
    n_tokens = 0
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", address.path + path, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{url}: status {response.status}: {response.read()[:300]!r}")
        for line in response:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            now = time.perf_counter()
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{url}: {event['error']}")
            choices = event.get("choices") or [{}]
            is_last = event.get("stop") is True or choices[0].get("finish_reason") is not None
            if not is_last and ("content" in event or "text" in choices[0]):
                times.append(now)
            usage = event.get("usage") or {}
            n_tokens = event.get("tokens_predicted") or usage.get("completion_tokens") or n_tokens
    finally:
        connection.close()
    # llama-server goes on for a few tokens where a character is not complete
    if not n <= n_tokens <= n + 4:
        raise RuntimeError(f"{url}: {n_tokens} tokens came, not {n}")
    if not times:
        raise RuntimeError(f"{url}: no token came in a part of its own")
    return n_tokens, times[0] - start, [b - a for a, b in itertools.pairwise(times)]


def load(url: str, args: argparse.Namespace, n_clients: int, seed: str) -> Run:
    """Has clients ask at the same time, each one request after the other."""
    rng = random.Random(seed)
    low, high = args.token_range
    prompts = [
        [prompt_of(rng, args.prompt, low, high) for _ in range(args.requests)] for _ in range(n_clients)
    ]
    run, lock, errors = Run(), threading.Lock(), []
    ready = threading.Barrier(n_clients + 1)

    def client(own: list[list[int]]) -> None:
        ready.wait()
        try:
            for prompt in own:
                n, first, gaps = ask(url, args.path, prompt, args.tokens, args.timeout)
                with lock:
                    run.n_tokens += n
                    run.firsts.append(first)
                    run.gaps += gaps
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(own,)) for own in prompts]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    run.seconds = time.perf_counter() - start
    if errors:
        raise errors[0]
    return run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def is_up(url: str) -> bool:
    """Whether a server has loaded its model."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    try:
        connection.request("GET", address.path + "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def running(name: str, what: str, patience: float) -> Iterator[str]:
    """The address of a server, which is started if `what` is a command."""
    if what.startswith(("http://", "https://")):
        yield what.rstrip("/")
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(shlex.split(what.replace("{port}", str(port))), stdout=log, stderr=log)
        try:
            end = time.monotonic() + patience
            while not is_up(url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    tail = log.read()[-2000:].decode(errors="replace")
                    raise RuntimeError(f"{name} does not start:\n{tail}")
                time.sleep(0.1)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(runs: dict[tuple[str, int], list[Run]], names: list[str], args: argparse.Namespace) -> str:
    """All numbers in Markdown."""
    lines = [
        f"Prompts of {args.prompt} tokens, {args.tokens} tokens out, {args.requests} requests of each client, "
        f"medians over {args.repeats} turns. `first`: seconds to the first token; `gap`: between two of a text.",
        "",
        "| clients | server | tokens/s | beside the best other | first, median | first, 95 % | gap, median |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for n_clients in args.clients:
        speeds = {
            name: statistics.median(r.n_tokens / r.seconds for r in runs[name, n_clients]) for name in names
        }
        for name in names:
            found = runs[name, n_clients]
            others = [speed for other, speed in speeds.items() if other != name]
            ratio = f"{speeds[name] / max(others):.2f}" if others else ""
            middle = statistics.median(statistics.median(r.firsts) for r in found)
            late = statistics.median(percentile(r.firsts, 0.95) for r in found)
            gap = statistics.median(statistics.median(r.gaps) for r in found if r.gaps)
            lines.append(
                f"| {n_clients} | {name} | {speeds[name]:.2f} | {ratio} | {middle:.3f} | {late:.3f} | {gap:.4f} |"
            )
    return "\n".join(lines)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def pair(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high)


def named(text: str) -> tuple[str, str]:
    name, equals, what = text.partition("=")
    if not equals or not what:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=COMMAND or NAME=URL")
    return name, what


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", type=named, action="append", required=True, metavar="NAME=COMMAND|URL")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 16], metavar="N,...")
    parser.add_argument("--prompt", type=int, default=512, metavar="N", help="tokens of a prompt (512)")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="tokens of a reply (128)")
    parser.add_argument("--requests", type=int, default=2, metavar="N", help="requests of each client (2)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="turns of each server (3)")
    parser.add_argument(
        "--token-range", type=pair, default=(1000, 30000), metavar="LOW:HIGH", help="ids of prompts' tokens"
    )
    parser.add_argument("--path", choices=PATHS, default=PATHS[0])
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")
    parser.add_argument("--start-timeout", type=float, default=600.0, metavar="SECONDS")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    names = [name for name, _ in args.server]
    runs: dict[tuple[str, int], list[Run]] = {(name, n): [] for name in names for n in args.clients}
    for turn in range(args.repeats):
        # who comes first changes, so that none has always the cooler machine
        order = args.server[turn % len(names) :] + args.server[: turn % len(names)]
        for name, what in order:
            with running(name, what, args.start_timeout) as url:
                ask(
                    url,
                    args.path,
                    prompt_of(random.Random(f"{turn}"), 16, *args.token_range),
                    4,
                    args.timeout,
                )
                for n_clients in args.clients:
                    run = load(url, args, n_clients, seed=f"{turn} {n_clients}")
                    runs[name, n_clients].append(run)
                    speed = run.n_tokens / run.seconds
                    first = statistics.median(run.firsts)
                    told = f"turn {turn + 1}, {name}, {n_clients} clients: {speed:.2f} tokens/s, first {first:.3f} s"
                    print(told, file=sys.stderr, flush=True)
    print(table(runs, names, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
