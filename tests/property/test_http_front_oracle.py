"""The HTTP front beside h11, an independent implementation: what one writes the other reads, however it is cut."""

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http1.connection import ConnectionState
from support.client_connection import ClientConnectionOwner, responses
from support.loops import run_virtual

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

        front = ClientConnectionOwner(answer)
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

    run_virtual(run())


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

        front = ClientConnectionOwner(answer)
        version = b"1.0" if http_1_0 else b"1.1"
        await front.feed(b"GET / HTTP/%b\r\nhost: x\r\n\r\n" % version)
        out, closed = front.transport.out, front.transport.closed
        front.end()
        return out, closed

    out, closed = run_virtual(run())
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


# What a client may write of a request head and body, rightly and wrongly; h11 reads the same bytes.
LINE_END = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\n ", b" \r\n"])
FRAMING = st.sampled_from(
    [
        b"content-length: 5",
        b"content-length: 05",
        b"content-length:5 ",
        b"content-length: +5",
        b"content-length: -5",
        b"content-length: 5_0",
        b"content-length: 0x5",
        b"content-length: 5, 5",
        b"content-length: 5 5",
        b"content-length : 5",
        b"content-length: 99999999999999999999999",
        b"transfer-encoding: chunked",
        b"transfer-encoding: Chunked",
        b"transfer-encoding: chunked, chunked",
        b"transfer-encoding: gzip, chunked",
        b"transfer-encoding: chunked, gzip",
        b"transfer-encoding: identity",
        b"transfer-encoding: chunked;q=1",
        b"transfer-encoding : chunked",
        b"transfer-encoding: \x0bchunked",
        b"x-y: z",
        b"x-y: a\x00b",
        b"x y: z",
        b"x-y",
        b": z",
        b"x\x7f: z",
        b"connection: close",
        b"expect: 100-continue",
        b"host: other",
        b"host: a b/c",
    ]
)
BODY = st.lists(
    st.sampled_from(
        [
            *(b"5\r\nhello\r\n", b"05\r\nhello\r\n", b"5;a=b\r\nhello\r\n", b"5;\r\nhello\r\n", b"5 \r\nhello\r\n"),
            *(
                b"+5\r\nhello\r\n",
                b"0x5\r\nhello\r\n",
                b"5_\r\nhello\r\n",
                b"5\nhello\n",
                b"5\rhello\r",
                b"6\r\nhello\r\n",
            ),
            *(b"fffffffffffffffff\r\n", b"\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\r\nx\r\n\r\n", b"00\r\n\r\n"),
            *(b"hello", b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"),
        ]
    ),
    max_size=4,
)
TARGETS = [
    b"/",
    b"/a?b=c",
    b"*",
    b"http://x/a",
    b"http://x?a",
    b"http://u@x/",
    b"x:80",
    b"/<",
    b'/"',
    b"/\xc3\xa9",
    b"/a b",
    b"",
]
MESSAGE = st.tuples(
    st.sampled_from([b"GET", b"POST", b"OPTIONS", b"CONNECT", b"HEAD"]),
    st.sampled_from([b"/"] * 12 + TARGETS),
    st.sampled_from([b"1.1"] * 9 + [b"1.0", b"2.0", b"1.10"]),
    st.booleans() | st.just(True),
    st.lists(st.tuples(FRAMING, LINE_END), max_size=3),
    BODY,
)


def spelled(message) -> bytes:
    method, target, version, with_host, lines, body = message
    data = b"%b %b HTTP/%b\r\n" % (method, target, version) + (b"host: x\r\n" if with_host else b"")
    return data + b"".join(line + end for line, end in lines) + b"\r\n" + b"".join(body)


def as_h11_reads(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(method, target, body) of each request that h11 finds complete, up to the first thing it refuses."""
    found = []
    rest = data
    try:
        while True:
            server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
            server.receive_data(rest.lstrip(b"\r\n"))  # RFC 9112 section 2.2 allows empty lines before a request
            head = server.next_event()
            if not isinstance(head, h11.Request):
                return found
            body = b""
            while isinstance(event := server.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                return found
            found.append((head.method, head.target, body))
            server.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is h11.MUST_CLOSE:
                return found
            rest = server.trailing_data[0]
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return found


@settings(max_examples=500, deadline=None)
@given(st.lists(MESSAGE, min_size=1, max_size=3), CUTS)
def test_whatever_the_front_takes_h11_frames_in_the_same_way(messages, cuts):
    """The front may refuse more than h11; of what it takes, each request has the end that h11 sees."""
    data = b"".join(spelled(message) for message in messages)

    async def run():
        front = ClientConnectionOwner(lambda collected: collected.response.send(404, []))
        await front.feed(data, cuts)
        taken = [(one.request.method, one.request.target, one.body) for one in front.requests if one.complete]
        connection = front.connection
        closing = connection._state >= ConnectionState.CLOSING
        front.end()
        return taken, closing

    taken, closing = run_virtual(run())
    oracle = as_h11_reads(data)
    for ours, theirs in zip(taken, oracle, strict=False):
        assert ours[0] == theirs[0]
        assert ours[2] == theirs[2]
        assert theirs[1].endswith(ours[1]) or ours[1] == b"/?a"
    assert len(taken) <= len(oracle)
    assert closing or len(taken) == len(oracle)
