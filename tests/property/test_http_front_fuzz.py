"""Hostile bytes at the HTTP front: two readings of one message are refused, and nothing hangs, raises or answers twice."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http1.connection import ConnectionState
from support.client_connection import ClientConnectionOwner, responses
from support.loops import run_virtual

HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"
HOST = b"host: x\r\n"


def asked(framing: bytes, body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + framing + b"\r\n" + body


# Each of these could be read in two ways by two servers in a row. Refused means: no request comes out of it, the
# connection closes, and the request that some reader might see behind it is never handled.
AMBIGUOUS = {
    "two lengths": asked(b"content-length: 0\r\ncontent-length: 33\r\n", HIDDEN),
    "the same length twice": asked(b"content-length: 33\r\ncontent-length: 33\r\n", HIDDEN),
    "two lengths in one": asked(b"content-length: 0, 33\r\n", HIDDEN),
    "negative length": asked(b"content-length: -1\r\n", HIDDEN),
    "signed length": asked(b"content-length: +0\r\n", HIDDEN),
    "hexadecimal length": asked(b"content-length: 0x21\r\n", HIDDEN),
    "length with underscore": asked(b"content-length: 3_3\r\n", HIDDEN),
    "length beyond 64 bits": asked(b"content-length: 18446744073709551616\r\n", HIDDEN),
    "empty length": asked(b"content-length: \r\n", HIDDEN),
    "blank before the colon": asked(b"content-length : 33\r\n", HIDDEN),
    "tab before the colon": asked(b"transfer-encoding\t: chunked\r\n", HIDDEN),
    "continued header line": asked(b"x: y\r\n content-length: 33\r\n", HIDDEN),
    "header line without colon": asked(b"content-length 33\r\n", HIDDEN),
    "bare line feeds": b"POST / HTTP/1.1\nhost: x\ncontent-length: 0\n\n" + HIDDEN,
    "bare carriage return": asked(b"x: y\rcontent-length: 33\r\n", HIDDEN),
    "nul in a value": asked(b"x: a\x00b\r\n", HIDDEN),
    "nul in a name": asked(b"content\x00-length: 33\r\n", HIDDEN),
    "unknown coding": asked(b"transfer-encoding: gzip\r\n", HIDDEN),
    "chunked is not last": asked(b"transfer-encoding: chunked, gzip\r\n", b"0\r\n\r\n" + HIDDEN),
    "coded before chunked": asked(b"transfer-encoding: gzip, chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "identity": asked(b"transfer-encoding: identity\r\n", HIDDEN),
    "two codings": asked(b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", b"0\r\n\r\n" + HIDDEN),
    "chunked twice": asked(b"transfer-encoding: chunked, chunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "almost chunked": asked(b"transfer-encoding: xchunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "vertical tab in coding": asked(b"transfer-encoding: \x0bchunked\r\n", b"0\r\n\r\n" + HIDDEN),
    "quoted chunked": asked(b'transfer-encoding: "chunked"\r\n', b"0\r\n\r\n" + HIDDEN),
    "chunked in http 1.0": b"POST / HTTP/1.0\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "http 0.9": b"GET /\r\n" + HIDDEN,
    "http 0.9 with a bare line feed": b"GET /\n\r\n" + HIDDEN,
    "http 2.0 in the way of 1.1": b"GET / HTTP/2.0\r\n" + HOST + b"\r\n" + HIDDEN,
    "http 2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "version of three digits": b"GET / HTTP/1.10\r\n" + HOST + b"\r\n" + HIDDEN,
}


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_a_message_that_can_be_read_in_two_ways_is_refused(name, cut):
    front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
    data = AMBIGUOUS[name]
    await front.feed(data, range(1, len(data)) if cut else ())
    assert not any(one.complete for one in front.requests)
    assert not any(one.request.target == b"/hidden" for one in front.requests)
    assert front.connection._state >= ConnectionState.CLOSING
    assert [status for status, _, _ in responses(front.transport.out)] == [502 if front.requests else 400]
    front.end()


# And these break inside a body that was begun rightly: the request never becomes complete, nothing behind it is handled.
BROKEN_BODIES = {
    "chunk size with sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "chunk size in 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "chunk size with blank": b"5 \r\nhello\r\n0\r\n\r\n",
    "chunk size without digits": b"\r\nhello\r\n0\r\n\r\n",
    "chunk size beyond 64 bits": b"fffffffffffffffff\r\n",
    "chunk longer than its size": b"3\r\nhello\r\n0\r\n\r\n",
    "chunk without its line end": b"5\r\nhello0\r\n\r\n",
    "chunk lines end in line feeds": b"5\nhello\n0\n\n",
    "bare carriage return in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "trailer without colon": b"0\r\nnonsense\r\n\r\n",
}


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_body_that_breaks_its_framing_never_becomes_complete(name, cut):
    front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
    data = asked(b"transfer-encoding: chunked\r\n", BROKEN_BODIES[name] + HIDDEN)
    await front.feed(data, range(1, len(data)) if cut else ())
    assert [one.complete for one in front.requests] == [False]
    assert front.connection._state >= ConnectionState.CLOSING
    assert [status for status, _, _ in responses(front.transport.out)] == [502]
    front.end()


PIECE = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n",
            b"POST /x HTTP/1.1\r\n",
            b"POST /x HTTP/1.0\r\n",
            b"HEAD / HTTP/1.1\r\n",
            b"CONNECT a:1 HTTP/1.1\r\n",
            b"host: x\r\n",
            b"content-length: 5\r\n",
            b"content-length: 0\r\n",
            b"transfer-encoding: chunked\r\n",
            b"connection: close\r\n",
            b"connection: keep-alive, upgrade\r\n",
            b"upgrade: h2c\r\n",
            b"expect: 100-continue\r\n",
            b"x-y: z\r\n",
            b"\r\n",
            b"hello",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"0\r\n",
            b"\n",
        ]
    ),
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(PIECE, max_size=25), st.lists(st.integers(1, 300), max_size=10))
def test_any_bytes_are_answered_in_order_refused_or_waited_for(pieces, cuts):
    """What comes out is whole responses, one for each request that was handled and at most one refusal after them."""

    async def run():
        def answer(collected):
            number = front.requests.index(collected)
            collected.response.send(200, [(b"x-number", b"%d" % number)], b"answer %d" % number)

        front = ClientConnectionOwner(answer)
        await front.feed(b"".join(pieces), cuts)
        out = front.transport.out.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
        methods = [one.request.method.decode() for one in front.requests]
        # CONNECT would make h11 take a 200 for a tunnel.
        answers = responses(out, ["GET" if method == "CONNECT" else method for method in methods])
        done = [index for index, one in enumerate(front.requests) if one.complete]
        assert done == list(range(len(done)))
        assert [status for status, _, _ in answers[: len(done)]] == [200] * len(done)
        for number, (_, headers, _) in enumerate(answers[: len(done)]):
            assert (b"x-number", b"%d" % number) in headers
        assert [status for status, _, _ in answers[len(done) :]] in ([], [400], [502])
        if len(answers) > len(done):
            assert front.connection._state >= ConnectionState.CLOSING
        front.end()

    run_virtual(run())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(1, 400), max_size=6))
def test_noise_is_refused_or_waited_for(data, cuts):
    async def run():
        front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
        await front.feed(data, cuts)
        assert front.requests == []
        assert front.transport.out == b"" or [one[0] for one in responses(front.transport.out)] == [400]
        front.end()

    run_virtual(run())


@pytest.mark.loop("virtual")
@pytest.mark.parametrize("begun", [b"", b"\r\n"])
async def test_an_idle_connection_stays_open(begun):
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"

    front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
    await front.feed(request + begun)
    await asyncio.sleep(3 * 86_400)
    assert not front.transport.closed
    await front.feed(request)
    assert [status for status, _, _ in responses(front.transport.out)] == [200, 200]
    front.end()


@pytest.mark.loop("virtual")
@pytest.mark.parametrize("begun", [b"G", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nhost: x\r\n"])
@pytest.mark.parametrize("trickle", [0, 1])
async def test_a_head_that_does_not_end_in_time_is_408_however_steadily_it_comes(begun, trickle):
    front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
    await front.feed(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    await asyncio.sleep(86_400)
    await front.feed(begun)
    for _ in range(59):
        await asyncio.sleep(1)
        if trickle and begun.endswith(b"\n"):
            await front.feed(b"a: b\r\n")
    assert [status for status, _, _ in responses(front.transport.out)] == [200]
    await asyncio.sleep(2)
    await front.settle()
    assert [status for status, _, _ in responses(front.transport.out)] == [200, 408]
    assert front.connection._state >= ConnectionState.CLOSING
    await asyncio.sleep(2)
    assert front.transport.closed
    front.end()


@pytest.mark.loop("virtual")
async def test_heads_that_always_share_a_segment_with_the_one_before_are_not_late():
    request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"

    front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
    await front.feed(request[:10])
    for _ in range(100):
        await asyncio.sleep(5)
        await front.feed(request[10:] + request[:10])
    assert [status for status, _, _ in responses(front.transport.out)] == [200] * 100
    front.end()


@pytest.mark.loop("virtual")
@pytest.mark.parametrize("gap", [50, 70])
async def test_a_body_may_be_slow_but_not_silent(gap):
    front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
    await front.feed(asked(b"content-length: 10\r\n", b""))
    for _ in range(10):
        await asyncio.sleep(gap)
        await front.settle()
        await front.feed(b"x")
    [(status, headers, _)] = responses(front.transport.out)
    assert status == (200 if gap < 60 else 408)
    assert ((b"connection", b"close") in headers) == (status == 408)
    front.end()


@pytest.mark.loop("virtual")
async def test_a_client_that_is_not_read_is_not_late():
    front = ClientConnectionOwner(lambda collected: collected.response.send(200, []))
    await front.feed(asked(b"content-length: 10\r\n", b"12345"))
    front.requests[0].request.body.pause()
    await asyncio.sleep(1000)
    front.requests[0].request.body.resume()
    await asyncio.sleep(50)
    await front.feed(b"67890")
    assert [status for status, _, _ in responses(front.transport.out)] == [200]
    front.end()
