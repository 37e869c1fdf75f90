"""Ask a server for more than it can give: python overload.py MODEL TEXTS OUT [words for `modernbert serve` ...]

First what it can give: 16 clients in a closed loop. Then twice as much for a minute, five times as much for five
seconds, each request on a connection of its own at its own time, whatever became of the others. Then nothing, and one
text after another until one is answered. Last SIGTERM at twice what it can give. Writes OUT.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from load import short_mix

PORT = 8411
CLOSED_S, OVERLOAD_S, BURST_S, ENDING_S = 20.0, 60.0, 5.0, 5.0


@dataclass
class Answer:
    status: int
    begun: float
    seconds: float
    tokens: int
    retry_after: str | None = None


@dataclass
class Asked:
    answers: list[Answer] = field(default_factory=list)
    refused_connections: int = 0
    lost: int = 0


def request(text: str) -> bytes:
    body = json.dumps({"inputs": text}).encode()
    head = ("POST /embed HTTP/1.1", "host: x", "connection: close", "content-type: application/json",
            f"content-length: {len(body)}", "", "")  # fmt: skip
    return "\r\n".join(head).encode() + body


async def ask(data: bytes, tokens: int, seen: Asked) -> Answer | None:
    begun = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    except OSError:
        seen.refused_connections += 1
        return None
    try:
        writer.write(data)
        await writer.drain()
        found = await reader.read()
        head = found.split(b"\r\n\r\n")[0].decode()
        status = int(head.split(" ")[1])
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
        answer = Answer(status, begun, time.monotonic() - begun, tokens, fields.get("retry-after"))
        seen.answers.append(answer)
        return answer
    except (OSError, IndexError, ValueError):
        # Taken by the system and never read by the server, or read and dropped: here no difference is made.
        seen.lost += 1
        return None
    finally:
        writer.close()


class Clients:
    def __init__(self, texts: list[str], sizes: list[int]) -> None:
        self.data = list(zip(map(request, texts), sizes, strict=True))
        self.random = np.random.default_rng(3)
        self.place = 0

    def next(self) -> tuple[bytes, int]:
        self.place += 1
        return self.data[self.place % len(self.data)]

    async def closed(self, number: int, seconds: float) -> Asked:
        seen, until = Asked(), time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until:
                await ask(*self.next(), seen)

        await asyncio.gather(*(client() for _ in range(number)))
        return seen

    async def open(self, per_s: float, seconds: float, seen: Asked) -> list[asyncio.Task]:
        """Begin requests at random times, so many a second; return those that are not answered yet among them."""
        tasks, due = [], time.monotonic()
        until = due + seconds
        while (due := due + self.random.exponential(1 / per_s)) < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.ensure_future(ask(*self.next(), seen)))
        await asyncio.sleep(max(0.0, until - time.monotonic()))
        return tasks


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def start(model: str, words: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "modernbert", "serve", model, "--port", str(PORT), *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    ready = b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    for _ in range(600):
        seen = Asked()
        answer = asyncio.run(ask(ready, 0, seen))
        if answer is not None and answer.status == 200:
            return process
        time.sleep(0.2)
    raise TimeoutError


def percentile(values: list[float], share: float) -> float | None:
    return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 1) if values else None


def described(name: str, seen: Asked, begun: float, seconds: float) -> dict:
    """Say of requests what came back while they were made, and how soon."""
    served = [each for each in seen.answers if each.status == 200]
    refused = [each for each in seen.answers if each.status == 429]
    in_time = [each for each in served if begun <= each.begun + each.seconds <= begun + seconds]
    return {
        "phase": name, "asked": len(seen.answers) + seen.lost + seen.refused_connections,
        "statuses": {str(s): sum(each.status == s for each in seen.answers) for s in {e.status for e in seen.answers}},
        "lost": seen.lost, "not connected": seen.refused_connections,
        "served_tokens_per_s": round(sum(each.tokens for each in in_time) / seconds, 1),
        "served_ms_p50_p99": [percentile([each.seconds for each in served], share) for share in (0.5, 0.99)],
        "refused_ms_p50_p99_max": [percentile([each.seconds for each in refused], share) for share in (0.5, 0.99, 1)],
        "refused_with_a_time": all(each.retry_after for each in refused),
    }  # fmt: skip


async def overload(clients: Clients, pid: int) -> list[dict]:
    await clients.closed(16, 5.0)
    begun = time.monotonic()
    seen = await clients.closed(16, CLOSED_S)
    rows = [described("16 clients in turn", seen, begun, CLOSED_S)]
    capacity = rows[0]["served_tokens_per_s"]
    per_s = capacity / np.mean([tokens for _, tokens in clients.data])
    memory = [rss_mib(pid)]

    async def watch() -> None:
        while True:
            memory.append(rss_mib(pid))
            await asyncio.sleep(0.2)

    watching = asyncio.ensure_future(watch())
    twice, burst = Asked(), Asked()
    begun = time.monotonic()
    left = await clients.open(2 * per_s, OVERLOAD_S, twice)
    burst_begun = time.monotonic()
    left += await clients.open(5 * per_s, BURST_S, burst)
    ended = time.monotonic()
    # Nobody asks any more; how long until whoever comes now is answered?
    probes = Asked()
    while not (answer := await ask(*clients.next(), probes)) or answer.status != 200:
        await asyncio.sleep(0.1)
    recovered = time.monotonic() - ended
    await asyncio.gather(*left)
    watching.cancel()
    rows.append(described("twice as much, 60 s", twice, begun, OVERLOAD_S))
    rows.append(described("five times as much, 5 s", burst, burst_begun, BURST_S))
    rows[1]["of_capacity"] = round(rows[1]["served_tokens_per_s"] / capacity, 3)
    rows.append({"phase": "afterwards", "first answer after s": round(recovered, 2),
                 "rss_mib": [round(memory[0]), round(max(memory))],
                 "rss_growth": round(max(memory) / memory[0] - 1, 4)})  # fmt: skip
    return rows


async def ending(clients: Clients, process: subprocess.Popen, per_s: float) -> dict:
    seen = Asked()
    begun = time.monotonic()
    asyncio.get_running_loop().call_later(ENDING_S / 2, process.send_signal, signal.SIGTERM)
    await asyncio.gather(*(await clients.open(2 * per_s, ENDING_S, seen)))
    return described("SIGTERM in the middle", seen, begun, ENDING_S)


def main() -> None:
    model, source, out, *words = sys.argv[1:]
    texts, sizes = short_mix(model, source)
    clients = Clients(texts, sizes)
    process = start(model, words)
    try:
        rows = asyncio.run(overload(clients, process.pid))
        for row in rows:
            print(row, flush=True)
        per_s = rows[0]["served_tokens_per_s"] / np.mean(sizes)
        rows.append(asyncio.run(ending(clients, process, per_s)))
        rows[-1]["exit_status"] = process.wait(180)
        print(rows[-1], flush=True)
    finally:
        process.kill()
    Path(out).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
