"""`python -m benchmarks openai`: a short run measures the gateway port and both fronts, and a load counts what is no full answer."""

import asyncio

import msgspec

from benchmarks import openai
from benchmarks.openai.load import Shape, run_load

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'f\r\ndata: {"a":1}\n\n\r\n'
FULL = HEAD + EVENT + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
CUT = HEAD + EVENT + b"0\r\n\r\n"
REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nfull"


def test_a_short_run_has_a_row_for_each_way_to_the_engine(tmp_path, capsys):
    found = tmp_path / "rows.json"
    short = ["--rounds", "1", "--seconds", "1", "--most", "20", "--connections", "2", "--streams", "2", "--tokens", "5"]
    openai.run([*short, "--json", str(found)])
    rows = msgspec.json.decode(found.read_bytes())
    ways = ["router, gateway port", "the same, with usage", "router, front, open", "router, front, keys"]
    assert [(row[1], row[0]) for row in rows] == [(shape, way) for shape in ("single", "one", "stream") for way in ways]
    assert all(row[4] > 0 for row in rows)
    assert capsys.readouterr().out.count("front, keys") == 3


async def test_answers_that_are_refused_or_cut_are_failures_and_not_times():
    answers = [FULL, REFUSED, CUT, FULL]

    async def answer(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            writer.write(answers.pop(0))

    async def connected(reader, writer):
        try:
            await answer(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        load = await run_load(f"127.0.0.1:{port}", {}, Shape("one", 1, 1), 10, 4)
    assert (load.requests, load.chunks, len(load.whole_s)) == (2, 2, 2)
    assert load.failures == {"ValueError 503 full": 1, "ValueError cut": 1}
