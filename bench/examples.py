"""A page of 50 examples out of 100,000 against one out of 1,000, over HTTP: `python -m bench.examples`."""

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import Iterator

from bench.http import Connection
from bench.kit import Promises, Round, fresh_servers, gateway, in_turns, ms, p50, p99, table

FEW, MANY = 1_000, 100_000
PAGES = {
    "the first page": ("limit=50", 2.0),
    "the last page": ("limit=50&offset={last}", 2.0),
    "refused ones": ("limit=50&is_valid=false", 2.0),
    "those of evaluation": ("limit=50&split=eval", 2.0),
    "a page from the middle": ("limit=50&offset={middle}", 0.0),
    "a search": ("limit=50&q=number+77", 0.0),
}
"""With what is promised of the ratio; nothing where people seldom go."""


def rows(count: int) -> Iterator[bytes]:
    """Every 50th is refused."""
    for number in range(count):
        if number % 50 == 49:
            yield b"{broken\n"
            continue
        answer = f"The answer to number {number} is long enough to be worth a page: " + "so it goes on for a while. " * 8
        yield json.dumps({"instruction": f"What about number {number}?", "input": "", "output": answer}).encode() + b"\n"


async def project(http: Connection, count: int) -> str:
    """With so many rows, once they can be read."""
    _, made = await http.ask("POST", "/projects", {"name": f"{count} examples"})
    id = json.loads(made)["id"]
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="kind"\r\n\r\ndataset_upload\r\n--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="rows.jsonl"\r\n\r\n'
    content = head.encode() + b"".join(rows(count)) + f"\r\n--{boundary}--\r\n".encode()
    lines = [f"POST /projects/{id}/files/upload HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
    http.writer.write("\r\n".join([*lines, f"Content-Type: multipart/form-data; boundary={boundary}", "", ""]).encode() + content)
    status, headers = await http.head()
    answer = json.loads(await http.reader.readexactly(int(headers[b"content-length"])))
    if status != 201:
        sys.exit(f"the upload was answered {status}: {answer}")
    while json.loads((await http.ask("GET", f"/jobs/{answer['files'][0]['job_id']}"))[1])["status"] != "success":  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    return id


def looks(http: Connection, id: str, query: str, *, count: int, requests: int) -> Round:
    path = f"/projects/{id}/dataset/examples?" + query.format(last=count - 50, middle=count // 2)

    async def some() -> list[float]:
        taken = []
        for _ in range(requests):
            started = time.perf_counter()
            status, _ = await http.ask("GET", path)
            taken.append(time.perf_counter() - started)
            if status != 200:
                sys.exit(f"{path} was answered {status}")
        return taken

    return some


async def measure(address: str, rounds: int, requests: int) -> int:
    promises = Promises()
    printed: list[tuple[str, ...]] = []
    async with Connection(address) as http:
        few, many = await project(http, FEW), await project(http, MANY)
        for name, (query, limit) in PAGES.items():
            sides = {"few": looks(http, few, query, count=FEW, requests=requests), "many": looks(http, many, query, count=MANY, requests=requests)}
            taken = await in_turns(sides, rounds=rounds)
            ratio = p50(taken["many"]) / p50(taken["few"])
            printed.append((name, ms(p50(taken["few"])), ms(p99(taken["few"])), ms(p50(taken["many"])), ms(p99(taken["many"])), f"{ratio:.2f}x"))
            if limit:
                promises.at_most(f"{name}, p50", ratio, limit, of="the same of the few")
    table(("50 examples", f"p50 of {FEW:,}", "p99", f"p50 of {MANY:,}", "p99", "ratio"), printed)
    return promises.exit_code()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=20, help="in each round")
    arguments = parser.parse_args()
    with fresh_servers() as servers, gateway(servers) as process:
        datasets = servers.service("datasets")
        datasets.start()
        try:
            return asyncio.run(measure(process.part.address, arguments.rounds, arguments.requests))
        finally:
            datasets.stop()


if __name__ == "__main__":
    sys.exit(main())
