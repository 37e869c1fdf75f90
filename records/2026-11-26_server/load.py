"""Ask two servers for vectors, in turn: python load.py MODEL TEXTS OUT

As `load.py` of the record before, but for two things: clients do as little as they can, for they compute on the cores
of the server; and the library's own rate is measured in turn with the servers, for what else runs on the host changes
from minute to minute. CLIENTS=64 asks with so many alone. Writes OUT.
"""

import asyncio
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

_spec = importlib.util.spec_from_file_location("before", Path(__file__).parents[1] / "2026-11-25_server" / "load.py")
before = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(before)
short_mix = before.short_mix

HEAD = "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n"


async def client(url, texts, sizes, first, step, counted_from, until, seen):
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    place = first
    while time.monotonic() < until:
        body = json.dumps({"inputs": [texts[place % len(texts)]]}).encode()
        begun = time.monotonic()
        writer.write(HEAD.format(len(body)).encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(answer.partition(b"content-length:")[2].split(b"\r\n", 1)[0]))
        done = time.monotonic()
        if answer.startswith(b"http/1.1 200") and counted_from <= done <= until:
            seen.append((sizes[place % len(texts)], done - begun))
        place += step
    writer.close()


before.client = client
if "CLIENTS" in os.environ:
    before.CLIENTS = tuple(map(int, os.environ["CLIENTS"].split(",")))


def measure(model, texts, sizes):
    for number in before.CLIENTS:
        for round_ in range(before.ROUNDS):
            yield {"round": round_ + 1, "clients": number, **before.library_rates(model, texts[:150], sizes[:150])}
            for system in before.PORTS:
                process = before.start(system, model)
                asyncio.run(before.ask(system, min(number, 8), texts, sizes, 2.0))  # warms up
                yield {"round": round_ + 1, **asyncio.run(before.ask(system, number, texts, sizes, before.SECONDS))}
                process.terminate()
                process.wait()


def main():
    model, source, out = sys.argv[1:4]
    rows = []
    for row in measure(model, *short_mix(model, source)):
        rows.append(row)
        print(row, flush=True)
        Path(out).write_text(json.dumps(rows, indent=1) + "\n")
    for number in before.CLIENTS:
        of_number = [row for row in rows if row["clients"] == number]
        ours, peers, library = ([row for row in of_number if row["system"] == s] for s in (*before.PORTS, "library"))
        # One client has one text at a time computed, whoever computes it.
        own = "one_at_a_time" if number == 1 else "tokens_per_s"
        for name, others in (("sentence-transformers", [row["tokens_per_s"] for row in peers]),
                             ("the library", [row[own] for row in library])):  # fmt: skip
            ratios = [row["tokens_per_s"] / other for row, other in zip(ours, others, strict=True)]
            print(
                f"{number} clients, to {name}: {statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
