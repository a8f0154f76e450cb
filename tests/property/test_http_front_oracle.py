"""The HTTP front beside h11, an independent implementation: what one writes the other reads, however it is cut."""

import asyncio

import h11
from http_front import Front, responses
from hypothesis import given, settings
from hypothesis import strategies as st

TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=12).map(lambda name: "x-" + name)
VALUE = st.text([chr(code) for code in range(0x21, 0x7F)], max_size=20) | st.just("two words\tand a tab")
PATH = st.text("abc/%20?&=.~-_", max_size=30).map(lambda rest: "/" + rest)
REQUEST = st.tuples(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS"]),
    PATH,
    st.lists(st.tuples(TOKEN, VALUE), max_size=8),
    st.lists(st.binary(min_size=1, max_size=200), max_size=4),
    st.booleans(),
)
CUTS = st.lists(st.integers(1, 2000), max_size=12)


def written(request) -> bytes:
    """The request as h11 writes it."""
    method, path, headers, pieces, chunked = request
    framing = ("transfer-encoding", "chunked") if chunked else ("content-length", str(sum(map(len, pieces))))
    client = h11.Connection(h11.CLIENT)
    data = client.send(h11.Request(method=method, target=path, headers=[("host", "x"), *headers, framing]))
    for piece in pieces:
        data += client.send(h11.Data(data=piece))
    return data + client.send(h11.EndOfMessage())


@settings(max_examples=300, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=5), CUTS)
def test_requests_are_read_as_they_were_written_and_answered_in_order(requests, cuts):
    async def run():
        def answer(collected):
            collected.response.send(200, [(b"x-seen", b"%d" % len(collected.body))], b"<%b>" % collected.request.target)

        front = Front(answer)
        await front.feed(b"".join(written(request) for request in requests), cuts)
        assert not front.transport.closed
        assert len(front.requests) == len(requests)
        for (method, path, headers, pieces, _), collected in zip(requests, front.requests, strict=True):
            assert collected.complete
            assert collected.request.method == method.encode()
            assert collected.request.target == path.encode()
            assert collected.body == b"".join(pieces)
            own = [(name.encode(), value.encode()) for name, value in headers]
            assert [entry for entry in collected.request.headers if entry[0].startswith(b"x-")] == own
        answers = responses(front.transport.out, [request[0] for request in requests])
        assert [status for status, _, _ in answers] == [200] * len(requests)
        for (method, path, *_), (_, headers, body) in zip(requests, answers, strict=True):
            assert body == (b"" if method == "HEAD" else b"<%b>" % path.encode())
            assert (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT") in headers
        front.end()

    asyncio.run(run())


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([200, 201, 204, 304, 400, 418, 429, 500, 503, 599, 999]),
    st.lists(st.tuples(TOKEN, VALUE), max_size=6),
    st.lists(st.binary(min_size=1, max_size=5000), max_size=6),
    st.sampled_from(["chunked", "right", "short", "long", "odd", "twice"]),
    st.booleans(),
)
def test_responses_are_read_as_they_were_meant_or_as_broken(status, headers, pieces, framing, http_1_0):
    whole = b"".join(pieces)
    lengths = {
        "chunked": [],
        "right": [len(whole)],
        "short": [len(whole) // 2],
        "long": [len(whole) + 1],
        "odd": ["+1"],
        "twice": [len(whole)] * 2,
    }[framing]
    entries = [(name.encode(), value.encode()) for name, value in headers]
    entries += [(b"content-length", b"%d" % one if isinstance(one, int) else one.encode()) for one in lengths]

    async def run():
        def answer(collected):
            collected.response.start(status, entries)
            for piece in pieces:
                if not collected.response.write(piece):
                    break
            collected.response.end()

        front = Front(answer)
        version = b"1.0" if http_1_0 else b"1.1"
        await front.feed(b"GET / HTTP/%b\r\nhost: x\r\n\r\n" % version)
        out, closed = front.transport.out, front.transport.closed
        front.end()
        return out, closed

    out, closed = asyncio.run(run())
    bodyless = status in (204, 304)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(out)
    client.receive_data(b"") if closed else None
    head = client.next_event()
    assert head.status_code == status
    assert [entry for entry in head.headers if entry[0].startswith(b"x-")] == [
        e for e in entries if e[0].startswith(b"x-")
    ]
    body = b""
    try:
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        event = None
    broken = framing == "long" and not bodyless
    if broken:
        assert event is None
        assert closed
    else:
        assert isinstance(event, h11.EndOfMessage)
    if not bodyless:
        assert body == (whole[: len(whole) // 2] if framing == "short" else whole)
    assert closed == (http_1_0 or broken)
