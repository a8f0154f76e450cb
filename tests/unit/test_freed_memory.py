"""Memory that strangers' handshakes needed goes back to the operating system."""

import asyncio
import ctypes
import os
import platform
import subprocess
import sys

import pytest

from router.process.freed_memory import FreedMemory, find_trim

pytestmark = pytest.mark.loop("virtual")


GLIBC = platform.libc_ver()[0] == "glibc"

BURST = """
import os, ssl
import certs
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from router.process.freed_memory import find_trim
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ServerTls

class Owner:
    def on_connection_id(self, cid): pass
    def on_closed(self, error): pass

def hello():
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True, verify_mode=ssl.CERT_NONE))
    connection.connect(("127.0.0.1", 1), now=0.0)
    return connection.datagrams_to_send(now=0.0)[0][0]

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

identity = certs.make_self_signed(["stargate"])
factory = AioquicFactory(QuicSettings(), ServerTls(identity.cert_pem, identity.key_pem))
hellos = [hello() for _ in range(200)]
before, trim = megabytes(), find_trim()
engines = [factory.accept(hellos[n % 200], ("127.0.0.1", 1), Owner(), 0.0) for n in range(512)]
for engine in engines:
    engine.deliver()
    engine.poll(0.0)
high = megabytes()
for engine in engines:
    engine.abandon(ConnectionClosedError(None, "gone", by_peer=False))
    engine.deliver()
    engine.discard()
del engine
engines.clear()
trim(0)
print(before, high, megabytes())
"""


async def test_it_is_given_back_once_per_interval_until_stopped():
    calls = []
    memory = FreedMemory(calls.append, interval_s=10)
    memory.start()
    await asyncio.sleep(35)
    assert calls == [0, 0, 0]
    memory.stop()
    await asyncio.sleep(35)
    assert len(calls) == 3
    memory.stop()


async def test_without_such_a_function_nothing_happens(monkeypatch):
    async def test():
        memory = FreedMemory(find_trim(), interval_s=10)
        memory.start()
        memory.stop()

    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert find_trim() is None
    await test()


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_as_many_handshakes_as_may_be_half_open_leave_less_than_thirty_megabytes():
    """Measured: 39 MB more at their height, 19 MB more when they have gone, and no more after the next such burst."""
    run = subprocess.run([sys.executable, "-c", BURST], capture_output=True, text=True, check=True, env=os.environ)
    before, high, after = map(float, run.stdout.split())
    assert high > before + 20
    assert after < before + 30
