"""Requests to `assay serve`: throughput beside batched inference, latency, memory, and what is no request.

    python -m benchmarks.serve DATA [--set eurosat] [--clients 32] [--seconds 60] [--malformed 1000] [--workers 2]

A linear probe is trained and served. Clients send one image after another, each on a connection that stays open, from a
process beside the server's. Batched inference is `Predictor.stream` on the same images, by turns with the clients, by
as many processes as the server has, with as many threads.
"""

import asyncio
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from assay.metrics.intervals import student
from benchmarks.harness import Cell, Options, Record, anonymous_bytes, children, in_a_process, one_off, train

BOUNDARY = "5d0f9c7e"
SIZE = 128
ROUNDS = 6  # of the seconds, each beside as long a one of batched inference: other processes slow both
MIB = 2**20
HEADER = b"IHDR" + struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\r" + HEADER + zlib.crc32(HEADER).to_bytes(4) + b"\0\0\xff\xffIDAT" + bytes(400)
"""The first bytes of a PNG of 144 million pixels."""


def request(
    body: bytes, *, kind: str = f"multipart/form-data; boundary={BOUNDARY}", path: str = "/predict", more: str = ""
) -> bytes:
    """Return a POST request as it goes over the wire; `more` are further lines of headers."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{more}\r\n".encode() + body


def form(*images: bytes, field: str = "images") -> bytes:
    """Return a form of files."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\n\r\n'.encode()
    return b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()


def as_json(value: object) -> bytes:
    return request(json.dumps(value).encode(), kind="application/json")


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(20, len(data) - 1)]


MALFORMED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut off": lambda image, chance: cut(request(form(image)), chance),
    "a form cut off": lambda image, chance: request(cut(form(image), chance)),
    "an image cut to its head": lambda image, chance: request(form(image[: chance.randrange(1, 100)])),
    "another boundary": lambda image, chance: request(form(image).replace(BOUNDARY.encode(), b"other")),
    "no boundary": lambda image, chance: request(form(image), kind="multipart/form-data"),
    "another field": lambda image, chance: request(form(image, field="path")),
    "no file": lambda image, chance: request(form()),
    "33 images": lambda image, chance: request(form(*[b"x"] * 33)),
    "noise for an image": lambda image, chance: request(form(chance.randbytes(2000))),
    "noise for a form": lambda image, chance: request(chance.randbytes(2000)),
    "noise for a request": lambda image, chance: chance.randbytes(200) + b"\r\n\r\n",
    "another type": lambda image, chance: request(image, kind=chance.choice(["image/jpeg", "text/html", "", "x"])),
    "no JSON": lambda image, chance: request(cut(json.dumps({"images": [{"data": "aaaa"}]}).encode(), chance),
                                             kind="application/json"),
    "JSON of other types": lambda image, chance: as_json(
        chance.choice([{}, [], 1, {"images": 1}, {"images": []}, {"images": [{"data": 1}]}, {"paths": ["/etc/passwd"]},
                       {"images": [{"data": "aaaa", "path": "/etc/passwd"}]}, {"images": [None]}, "\ud800"])
    ),
    "no base64": lambda image, chance: as_json({"images": [{"data": "é~" * 9}]}),
    "deep JSON": lambda image, chance: request(b"[" * 100_000, kind="application/json"),
    "a bomb of pixels": lambda image, chance: request(form(BOMB)),
    "compressed": lambda image, chance: request(form(image), more="Content-Encoding: gzip\r\n"),
    "30 MB": lambda image, chance: request(bytes(30_000_000)),
    "a length of 10 GB": lambda image, chance: request(b"").replace(b"Length: 0", b"Length: 10000000000"),
    "a length below 0": lambda image, chance: request(b"").replace(b"Length: 0", b"Length: -1"),
    "headers of 10 MB": lambda image, chance: request(form(image), more=f"X-Long: {'a' * 10_000_000}\r\n"),
    "chunks that are none": lambda image, chance: request(b"zz\r\nabc").replace(
        b"Content-Length: 7", b"Transfer-Encoding: chunked"),
    "a number that is none": lambda image, chance: request(form(image), path="/predict?top=-1"),
    "a path": lambda image, chance: request(form(image), path=chance.choice(["/../etc/passwd", "/%00", "/a/b"])),
    "another method": lambda image, chance: request(form(image)).replace(b"POST", b"PUT", 1),
    "a foreign origin": lambda image, chance: request(form(image), more="Origin: http://evil.example\r\n"),
    "a foreign host": lambda image, chance: request(form(image)).replace(b"127.0.0.1", b"evil.example", 1),
}  # fmt: skip
"""What is wrong with a request -> such a request, from an image and a generator of chances."""


def answer_to(data: bytes, port: int, *, seconds: float = 60) -> tuple[int, bytes]:
    """Send bytes and no more, and return the status and the body of the answer; status 0 without one."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with suppress(OSError):  # refused before all was sent: the answer is there
            connection.sendall(data.replace(b"PORT", str(port).encode()))
            connection.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            while part := connection.recv(65536):
                received += part
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1.1 (\d+)", head)
    return int(found[1]) if found else 0, body


def is_refused(status: int, body: bytes) -> bool:
    """Return whether an answer is one of 4xx with a message in JSON."""
    try:
        return 400 <= status < 500 and len(json.loads(body)["error"]) > 10
    except (ValueError, KeyError, TypeError):
        return False


@contextmanager
def served(run: Path, *options: object, **environment: str) -> Iterator[tuple[int, int]]:
    """Serve a run for the block in a process of its own; yield its id and the port."""
    words = [sys.executable, "-m", "assay", "serve", str(run), "--port", "0", *map(str, options)]
    with subprocess.Popen(words, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = next(match[1] for line in process.stdout if (match := re.search(r"http://\S+:(\d+)/", line)))
        try:
            yield process.pid, int(port)
        finally:
            process.terminate()


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of those that it started (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children(pid)))


def batched(model: str, files: Sequence[str], seconds: float) -> Record:
    """Return images and CPU seconds an image of batched inference, for so many seconds."""
    from assay.predictions.predictor import Predictor

    predictor, count = Predictor.load(Path(model), device="cpu"), 0
    images = [(file, Path(file)) for file in files]
    list(predictor.stream(images[:64]))
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        count += sum(len(part) for part in predictor.stream(images))
    return {"rate": count / (time.perf_counter() - began), "cpu": (time.process_time() - cpu) / count}


async def ask(port: int, requests: Sequence[bytes], number: int, until: float, times: list[float]) -> int:
    """Send requests one after another until a time; add the seconds of each, and return how many failed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    failed = 0
    while (began := time.perf_counter()) < until:
        writer.write(requests[number % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        failed += not head.startswith(b"HTTP/1.1 200")
        times.append(time.perf_counter() - began)
        number += 7
    writer.close()
    return failed


def load(port: int, files: Sequence[str], clients: int, seconds: float) -> Record:
    """Return the seconds of the answers to so many clients at a time, how many failed, and CPU seconds of a request."""
    requests = [request(form(Path(file).read_bytes())).replace(b"PORT", str(port).encode()) for file in files]
    times: list[float] = []

    async def all_clients() -> int:
        until = time.perf_counter() + seconds
        return sum(await asyncio.gather(*(ask(port, requests, number, until, times) for number in range(clients))))

    cpu = time.process_time()
    failed = asyncio.run(all_clients())
    return {"failed": failed, "times": times, "cpu": (time.process_time() - cpu) / len(times)}


def all_batched(run: Path, images: Sequence[str], seconds: float, workers: int, threads: str) -> Record:
    """Return the sum of the images/s of as many processes as the server has, and the mean of their CPU seconds."""

    def one(_: int) -> Record:
        done: Record = in_a_process(batched, str(run / "model"), images, seconds, OMP_NUM_THREADS=threads)
        return done

    with ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(one, range(workers)))
    return {"rate": sum(row["rate"] for row in rows), "cpu": sum(row["cpu"] for row in rows) / workers}


def measure(options: Options, work: Path) -> Record:
    """Return the figures of one server: rounds of batched inference and of clients by turns, then what is malformed."""
    plan = {"data": options.data_of(options.set), "steps": [{"probe": {"size": SIZE}}]}
    train(plan, work)
    run, threads = work / "run", str(max(1, (os.cpu_count() or 1) // options.workers))
    images = sorted(str(path) for path in (options.data / options.set).rglob("*.jpg"))[::8]
    seconds, rounds, mib = options.seconds / ROUNDS, [], []
    with served(run, "--no-explain", "--workers", options.workers, OMP_NUM_THREADS=threads) as (pid, port):
        load(port, images, options.clients, seconds)
        for _ in range(ROUNDS):
            alone = all_batched(run, images, seconds, options.workers, threads)
            cpu = cpu_seconds(pid)
            asked = in_a_process(load, port, images, options.clients, seconds)
            each = (cpu_seconds(pid) - cpu) / len(asked["times"])
            rounds.append({"alone": alone, "asked": asked, "cpu": each})
            mib.append(anonymous_bytes(pid) / MIB)
        refused = refuse(port, Path(images[0]).read_bytes(), options.malformed)
        mib.append(anonymous_bytes(pid) / MIB)
        status, _ = answer_to(request(form(Path(images[0]).read_bytes())), port)
    times = np.concatenate([one["asked"]["times"] for one in rounds])
    return {
        "rate": len(times) / options.seconds,
        "batched": float(np.mean([one["alone"]["rate"] for one in rounds])),
        "shares": [len(one["asked"]["times"]) / seconds / one["alone"]["rate"] for one in rounds],
        "cpu_shares": [one["alone"]["cpu"] / one["cpu"] for one in rounds],
        "clients_cpu": float(np.mean([one["asked"]["cpu"] for one in rounds])),
        "n": len(times), "failed": sum(one["asked"]["failed"] for one in rounds),
        "p50": 1000 * float(np.median(times)), "p99": 1000 * float(np.percentile(times, 99)),
        "mib": mib, **refused, "up": status == 200,
    }  # fmt: skip


def refuse(port: int, image: bytes, count: int) -> Record:
    """Send so many malformed requests, of each kind by turns; return how many were refused, and the kinds of others."""
    chance, others = random.Random(0), set()
    for name in islice(cycle(MALFORMED), count):
        if not is_refused(*answer_to(MALFORMED[name](image, chance), port)):
            others.add(name)
    return {"malformed": count, "not_refused": sorted(others)}


def cells(options: Options) -> list[Cell]:
    def in_scratch() -> Record:
        with options.scratch() as work:
            return measure(options, work)

    return [Cell(options.set, 0, in_scratch)]


def _mean(values: Sequence[float]) -> str:
    half = student(len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.2f} [{np.mean(values) - half:.2f}, {np.mean(values) + half:.2f}]"


def lines(options: Options, records: Sequence[Record]) -> list[str]:
    """Return a table of the figures."""
    (row,) = records
    mib = row["mib"]
    table = [
        ("images/s, one an answer; batched inference", f"{row['rate']:.0f}; {row['batched']:.0f}"),
        ("answers; failed", f"{row['n']:,}; {row['failed']}"),
        (f"served / batched, {ROUNDS} pairs of {options.seconds / ROUNDS:g} s", _mean(row["shares"])),
        ("the same by CPU seconds an image", _mean(row["cpu_shares"])),
        ("milliseconds of CPU of a client's request", f"{1000 * row['clients_cpu']:.2f}"),
        ("milliseconds of an answer, median and 99th percentile", f"{row['p50']:.0f}, {row['p99']:.0f}"),
        ("MiB after each round; after what is malformed",
         f"{', '.join(f'{one:.0f}' for one in mib[:-1])}; {mib[-1]:.0f}"),
        ("malformed requests; not refused by 4xx and a message; the server up after",
         f"{row['malformed']:,}; {', '.join(row['not_refused']) or 0}; {'yes' if row['up'] else 'no'}"),
    ]  # fmt: skip
    head = f"| {options.clients} clients for {options.seconds:g} s | {row['name']} at {SIZE} pixels |"
    return [options.command, "", head, "| --- | --- |", *(f"| {name} | {value} |" for name, value in table)]


if __name__ == "__main__":
    settings = {"set": "eurosat", "clients": 32, "seconds": 60.0, "malformed": 1000, "workers": 2}
    one_off("serve", __doc__, cells, lines=lines, settings=settings).main()
