"""Failed TLS handshakes on the gRPC port cannot end the process: grpcio crashed where each handshake got a new certificate."""

import subprocess
import sys
from pathlib import Path

SERVES = """
import asyncio, os, sys
os.environ["GRPC_VERBOSITY"] = "NONE"
from certs import make_self_signed
from router.grpc.server import GrpcServer, GrpcTls

FLOOD = '''
import socket, sys
for _ in range(1_500):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as peer:
        peer.sendall(bytes.fromhex("160301000568656c6c6f") * 10)
'''

async def main():
    identity = make_self_signed(["localhost"], days=1)
    server = GrpcServer(tls=GrpcTls(cert_pem=identity.cert_pem, key_pem=identity.key_pem))
    port = server.bind("127.0.0.1:0")
    await server.start()
    peers = [await asyncio.create_subprocess_exec(sys.executable, "-c", FLOOD, str(port)) for _ in range(2)]
    ended = [await peer.wait() for peer in peers]
    await server.stop(1)
    print("ended", ended)

asyncio.run(main())
"""


def test_garbage_in_place_of_handshakes_does_not_end_the_process() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SERVES],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert (ended.returncode, ended.stdout) == (0, "ended [0, 0]\n"), ended.stderr[-2_000:]
