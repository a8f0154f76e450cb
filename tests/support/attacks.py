"""What hostile peers do to a router, one class for each kind. Rates are bounded: the router should notice, not the machine."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aioquic.asyncio.client
import grpc
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from llm_request_router.testing import System
from support.hostile_packets import client_hello, crypto_frame, gaps, initial
from support.rapid_reset import PREFACE, calls_reset, frame
from tunnel_protocol.control import stargate_pb2, stargate_pb2_grpc

POLICY_FILE = "lb.json"
GOOD_POLICY = b'{"default": "power-of-n"}'


def address(listener: str) -> tuple[str, int]:
    """Host and port of an `ip:port`."""
    host, _, port = listener.rpartition(":")
    return host, int(port)


class Attack:
    """One kind of attack. `sent` counts its events, `refused` those that the router ended with an error of the connection."""

    per_s = 10.0
    """Events per second at most."""

    def __init__(self) -> None:
        self.sent = 0
        self.refused = 0

    @classmethod
    def name(cls) -> str:
        """The class name in snake case, as the command line takes it."""
        return "".join("_" + one.lower() if one.isupper() else one for one in cls.__name__).lstrip("_")

    async def run(self, system: System, until: float) -> None:
        """Attack until this time of `time.monotonic`."""
        async for _ in self._paced(until):
            await self._event(system)

    async def _event(self, system: System) -> None:
        raise NotImplementedError

    async def _paced(self, until: float) -> AsyncIterator[None]:
        due = time.monotonic()
        while due < until:
            yield
            self.sent += 1
            # what was late is not made up for: the rate is an upper bound
            due = max(due + 1 / self.per_s, time.monotonic())
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    @contextlib.contextmanager
    def _refusal(self) -> Iterator[None]:
        """The router may reset or stop reading a hostile connection; anything else is an error of this program."""
        try:
            yield
        except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
            self.refused += 1


class Datagrams(Attack):
    """Datagrams to the tunnel port whose answers nobody reads."""

    async def run(self, system: System, until: float) -> None:
        assert system.ports.reverse_tunnel is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            async for _ in self._paced(until):
                with self._refusal():
                    sender.sendto(self._datagram(), address(system.ports.reverse_tunnel))

    def _datagram(self) -> bytes:
        raise NotImplementedError


class InitialsNeverContinued(Datagrams):
    """Valid ClientHellos, after which nothing comes."""

    per_s = 100.0

    def __init__(self) -> None:
        super().__init__()
        quic = QuicConnection(configuration=QuicConfiguration(is_client=True))
        quic.connect(("127.0.0.1", 1), now=0.0)
        # the transport parameters name the source connection ID, so it stays; the destination is a new one each time
        self._source, self._hello = quic.host_cid, crypto_frame(0, client_hello(quic))

    def _datagram(self) -> bytes:
        return initial([self._hello], source_cid=self._source)


class InitialsMalformed(Datagrams):
    """Initials that decrypt, with frames that cannot be read or mean nothing."""

    per_s = 200.0

    def _datagram(self) -> bytes:
        frame = (crypto_frame(0, os.urandom(900)), b"\x06\xff", b"\x1f" + os.urandom(40), b"\x08\x00x")
        return initial([frame[self.sent % len(frame)]])


class CryptoGaps(Datagrams):
    """CRYPTO frames of one byte, none of which touches another."""

    per_s = 100.0

    def _datagram(self) -> bytes:
        return initial(gaps(150))


class IdleHandshakes(Attack):
    """Finished handshakes of peers that then say nothing, 50 at a time."""

    per_s = 10.0
    _open = 50

    async def run(self, system: System, until: float) -> None:
        held: list[contextlib.AsyncExitStack] = []
        try:
            async for _ in self._paced(until):
                if len(held) >= self._open:
                    await held.pop(0).aclose()
                with self._refusal():
                    held.append(await self._handshake(system))
        finally:
            for one in held:
                await one.aclose()

    async def _handshake(self, system: System) -> contextlib.AsyncExitStack:
        assert system.ports.reverse_tunnel is not None
        host, port = address(system.ports.reverse_tunnel)
        configuration = QuicConfiguration(is_client=True, verify_mode=ssl.CERT_NONE, idle_timeout=5.0)
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(5):
            await stack.enter_async_context(aioquic.asyncio.client.connect(host, port, configuration=configuration))
            return stack.pop_all()


class HalfHeads(Attack):
    """50 HTTP connections, on each a header line now and then, and never the end of the head."""

    per_s = 50.0
    _open = 50

    async def run(self, system: System, until: float) -> None:
        held: list[asyncio.StreamWriter] = []
        try:
            async for _ in self._paced(until):
                with self._refusal():
                    if len(held) < self._open:
                        _, writer = await asyncio.open_connection(*address(system.ports.http))
                        held.append(writer)
                        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n")
                        continue
                    writer = held[self.sent % self._open]
                    if writer.is_closing():
                        held.remove(writer)
                        await _closed(writer)
                        continue
                    writer.write(b"x-a: b\r\n")
                    await writer.drain()
        finally:
            for writer in held:
                await _closed(writer)


class OneConnectionEach(Attack):
    """A connection for each event: bytes, then what comes back, then closed."""

    _answer_s = 3.0

    async def _event(self, system: System) -> None:
        with self._refusal():
            reader, writer = await asyncio.open_connection(*address(self._listener(system)))
            try:
                async with asyncio.timeout(self._answer_s):
                    await self._talk(reader, writer)
            finally:
                await _closed(writer)

    def _listener(self, system: System) -> str:
        return system.ports.http

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class Smuggling(OneConnectionEach):
    """Requests whose end two parsers may see at different places, or whose target they may read differently."""

    per_s = 20.0
    _head = b"POST /v1/chat/completions HTTP/1.1\r\n"
    _forms = (
        _head
        + b"host: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\n\r\n",
        _head + b"host: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        _head + b"host: a\r\nhost: b\r\ncontent-length: 0\r\n\r\n",
        _head + b"content-length: 0\r\n\r\n",
        _head + b"host: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        _head + b"host: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        _head + b"host: a\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        _head + b"host: a\r\ncontent-length: +5\r\n\r\nhello",
        _head + b"host: a\r\nx-a: b\r\n folded\r\ncontent-length: 0\r\n\r\n",
        _head + b"host: a\r\ntransfer-encoding: chunked\r\n\r\n5;a=\nb\r\nhello\r\n0\r\n\r\n",
        _head + b"host: a\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello",
        b'GET /"<> HTTP/1.1\r\nhost: a\r\n\r\n',
        b"GET http://a:b:c/ HTTP/1.1\r\nhost: a\r\n\r\n",
    )

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._forms[self.sent % len(self._forms)])
        await reader.readline()


class TinyChunks(OneConnectionEach):
    """Uploads in chunks of two bytes, one after the other: 512 KiB of body in 1.8 MB."""

    per_s = 1.0
    _answer_s = 30.0
    _head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-request-id: tiny\r\nx-model: m\r\nx-input-tokens: 1\r\n"
        b"content-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._head)
        for _ in range(64):
            writer.write(b"2\r\nxx\r\n" * 4_096)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read()


class UnreadAnswers(Attack):
    """Long answers that are asked for and never read; 10 at a time."""

    per_s = 5.0
    _open = 10
    _request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-request-id: unread\r\nx-model: m\r\nx-input-tokens: 1\r\n"
        b"content-type: application/json\r\ncontent-length: 2\r\n"
        b"x-mock-echo: unread\r\nx-output-tokens: 40\r\nx-mock-pad: 100000\r\n\r\n{}"
    )

    async def run(self, system: System, until: float) -> None:
        held: list[socket.socket] = []
        loop = asyncio.get_running_loop()
        try:
            async for _ in self._paced(until):
                if len(held) >= self._open:
                    held.pop(0).close()
                one = socket.socket()
                held.append(one)
                one.setblocking(False)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                with self._refusal():
                    await loop.sock_connect(one, address(system.ports.http))
                    await loop.sock_sendall(one, self._request)
        finally:
            for one in held:
                one.close()


class GrpcGarbage(Attack):
    """Anything but HTTP/2 on the control port, or half of it, and a reset."""

    per_s = 20.0
    _preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

    async def _event(self, system: System) -> None:
        bodies = (os.urandom(3_000), self._preface + os.urandom(500), self._preface + b"\0\0\0\4\0\0\0\0\0", b"GET / ")
        loop = asyncio.get_running_loop()
        with self._refusal(), socket.socket() as one:
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await loop.sock_connect(one, address(system.ports.grpc))
            await loop.sock_sendall(one, bodies[self.sent % len(bodies)])


class FramesOfNoCall(Attack):
    """PINGs on the control port as fast as it reads them, until it closes the connection."""

    per_s = 2.0

    async def _event(self, system: System) -> None:
        await self._flood(system, [frame(6, 0, 0, bytes(8)) * 1_000] * 100)

    async def _flood(self, system: System, parts: Sequence[bytes]) -> None:
        with self._refusal():
            _, writer = await asyncio.open_connection(*address(system.ports.grpc))
            try:
                writer.write(PREFACE + frame(4, 0, 0))
                for part in parts:
                    writer.write(part)
                    await writer.drain()
            finally:
                await _closed(writer)


class RapidReset(FramesOfNoCall):
    """Calls on the control port that are opened and reset at once, until it closes the connection."""

    per_s = 0.5

    async def _event(self, system: System) -> None:
        path = "/stargate.StargateControlPlane/RegisterInferenceServer"
        await self._flood(system, [calls_reset(path, 50 * number, 50) for number in range(100)])


class Calls(Attack):
    """gRPC calls on the control port that should be refused; `codes` counts the statuses they ended with."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: Counter[str] = Counter()

    async def run(self, system: System, until: float) -> None:
        async with grpc.aio.insecure_channel(system.ports.grpc) as channel:
            stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)  # type: ignore[no-untyped-call]  # generated
            async for _ in self._paced(until):
                try:
                    await self._call(stub)
                except grpc.aio.AioRpcError as error:
                    self.refused += 1
                    self.codes[error.code().name] += 1

    async def _call(self, stub: stargate_pb2_grpc.StargateControlPlaneStub) -> None:
        raise NotImplementedError


class HugeMetadata(Calls):
    """Calls with 200 kB of metadata."""

    per_s = 10.0

    async def _call(self, stub: stargate_pb2_grpc.StargateControlPlaneStub) -> None:
        metadata = tuple((f"x-{number}", "v" * 4_000) for number in range(50))
        call = stub.WatchStargates(stargate_pb2.WatchStargatesRequest(), metadata=metadata, timeout=2)
        await call.read()
        call.cancel()


class RegistrationTooLarge(Calls):
    """Registrations beyond one bound each, and one with more priorities than are kept."""

    per_s = 5.0

    def __init__(self) -> None:
        super().__init__()
        stats, entry = stargate_pb2.ModelStats, stargate_pb2.InferenceServerModelRegistration
        words, many = ["x"] * 300, dict.fromkeys(range(20_000), 1)
        self._messages = (
            _registration(models={f"m-{number}": entry() for number in range(20_000)}),
            _registration(models={"x" * 2_000: entry()}),
            _registration(cluster_id="x" * 2_000),
            _registration(models={"greedy": entry(stats=stats(stats_capabilities=words))}),
            _registration(models={"greedy": entry(stats=stats(queue_time_estimate_ms_by_priority=many))}),
        )

    async def _call(self, stub: stargate_pb2_grpc.StargateControlPlaneStub) -> None:
        call = stub.RegisterInferenceServer(timeout=2)
        try:
            await call.write(self._messages[self.sent % len(self._messages)])
            await call.read()
        finally:
            call.cancel()


class Hangups(Attack):
    """SIGHUP, again and again."""

    per_s = 2.0

    async def _event(self, system: System) -> None:
        system.router.send(signal.SIGHUP)


class PolicyGarbage(Attack):
    """The policy file is replaced by garbage and, in the end, by what it was; with SIGHUP each time."""

    per_s = 4.0
    _contents = (b'{"default"', GOOD_POLICY, b"\xff\xfe", b'{"default": "\\ud800"}', b"[" * 100_000, GOOD_POLICY, b"")

    async def run(self, system: System, until: float) -> None:
        path = system.directory / POLICY_FILE
        try:
            async for _ in self._paced(until):
                _replace(path, self._contents[self.sent % len(self._contents)])
                system.router.send(signal.SIGHUP)
        finally:
            _replace(path, GOOD_POLICY)
            system.router.send(signal.SIGHUP)


ATTACKS: tuple[type[Attack], ...] = (
    InitialsNeverContinued,
    InitialsMalformed,
    CryptoGaps,
    IdleHandshakes,
    HalfHeads,
    Smuggling,
    TinyChunks,
    UnreadAnswers,
    GrpcGarbage,
    FramesOfNoCall,
    RapidReset,
    HugeMetadata,
    RegistrationTooLarge,
    PolicyGarbage,
    Hangups,
)


def _registration(**fields: Any) -> stargate_pb2.InferenceServerRegistration:
    return stargate_pb2.InferenceServerRegistration(
        inference_server_id="greedy", inference_server_url="http://127.0.0.1:1", reverse_tunnel=True, **fields
    )


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
