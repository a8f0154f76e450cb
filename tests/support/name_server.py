"""A small authoritative name server on the loopback."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class NameServer(asyncio.DatagramProtocol):
    """Answers from a table of `(name, type)`; anything else does not exist; "silent" names get no answer."""

    def __init__(self) -> None:
        self.table: dict[tuple[str, str], list[str]] = {}
        self.additional: dict[tuple[str, str], list[str]] = {}
        """Records that come along with every answer."""
        self.ttl = 60
        self.asked: list[tuple[str, str]] = []
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, record_type = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, record_type))
        if name.startswith("silent"):
            return
        response = dns.message.make_response(query)
        known = [key for key in self.table if key[0] == name]
        if not known:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif (name, record_type) in self.table:
            records = self.table[(name, record_type)]
            response.answer.append(dns.rrset.from_text(name, self.ttl, "IN", record_type, *records))
            for (other, kind), texts in self.additional.items():
                response.additional.append(dns.rrset.from_text(other, self.ttl, "IN", kind, *texts))
        assert self.transport is not None
        self.transport.sendto(response.to_wire(), addr)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self.transport is not None
        address: tuple[str, int] = self.transport.get_extra_info("sockname")
        return address


@asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """A server in this event loop."""
    server = NameServer()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()


@contextmanager
def name_server_in_a_thread() -> Iterator[NameServer]:
    """A server with a loop of its own, for tests that wait for processes. Replace its `table` as a whole."""
    started: Any = threading.Event()
    found: list[NameServer] = []
    over: list[asyncio.Event] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        over.append(asyncio.Event())
        async with name_server() as server:
            found.append(server)
            started.set()
            await over[0].wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(5)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(over[0].set)
        thread.join(5)
        loop.close()
