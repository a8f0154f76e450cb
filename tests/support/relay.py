"""Userspace relays that can be cut and, for datagrams, made bad: packets vanish, come twice, late or never when they are large."""

import contextlib
import heapq
import random
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import Self


class _Relay:
    def __init__(self) -> None:
        self.cut = False
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._pause_s()):
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)

    def _pause_s(self) -> float:
        return 0.05


@dataclass(frozen=True)
class RelayWeather:
    """What happens to each datagram, by probability; those that are late take up to `late_s` and are overtaken."""

    loss: float = 0.0
    duplication: float = 0.0
    late: float = 0.0
    late_s: float = 0.02
    largest_bytes: float = 65_535
    """Larger ones vanish without a word."""
    moves_every_s: float = 0.0
    """How often every source gets another port towards the target, as when a NAT forgets its mappings; 0: never."""

    @classmethod
    def parse(cls, words: str) -> "RelayWeather":
        """From `loss=0.01,late=0.1`."""
        return cls(
            **{name: float(value) for name, _, value in (word.partition("=") for word in words.split(",") if word)}
        )


class UdpRelay(_Relay):
    """Passes datagrams to `target_port` and back; one socket towards the target per source address."""

    def __init__(self, target_port: int | None = None, weather: RelayWeather | None = None, seed: int = 0) -> None:
        """A target that is not known yet is set later, as `target_port`."""
        super().__init__()
        self.target_port = target_port
        self.target_host = "127.0.0.1"
        """Which address of the target's host is used; may change at any time, as behind a load balancer."""
        self.weather = weather or RelayWeather()
        self.largest_passed = 0
        self.passed = self.lost = self.duplicated = self.delayed = self.too_large = self.moves = 0
        self._random = random.Random(seed)
        self._moving = False
        self._move_at = time.monotonic() + self.weather.moves_every_s
        self._front = self._socket()
        self._front.bind(("127.0.0.1", 0))
        self.port: int = self._front.getsockname()[1]
        self._backs: dict[tuple[str, int], socket.socket] = {}
        self._late: list[tuple[float, int, socket.socket, bytes, tuple[str, int]]] = []
        self._selector.register(self._front, selectors.EVENT_READ, self._from_front)

    def move(self) -> None:
        """Have every source get another port towards the target."""
        self._moving = True

    def _move(self) -> None:
        self.moves += 1
        backs, self._backs = self._backs, {}
        for back in backs.values():
            self._selector.unregister(back)
            back.close()

    @staticmethod
    def _socket() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.setblocking(False)
        return sock

    def _from_front(self, front: socket.socket) -> None:
        while True:
            data, source = front.recvfrom(65_536)
            back = self._backs.get(source)
            if back is None:
                back = self._backs[source] = self._socket()
                back.bind(("127.0.0.1", 0))
                self._selector.register(
                    back, selectors.EVENT_READ, lambda sock, source=source: self._from_back(sock, source)
                )
            if self.target_port is not None:
                self._pass(back, data, (self.target_host, self.target_port))

    def _from_back(self, back: socket.socket, source: tuple[str, int]) -> None:
        while True:
            self._pass(self._front, back.recv(65_536), source)

    def _pass(self, sock: socket.socket, data: bytes, address: tuple[str, int]) -> None:
        weather, chance = self.weather, self._random.random
        if self.cut or chance() < weather.loss:
            self.lost += 1
            return
        if len(data) > weather.largest_bytes:
            self.too_large += 1
            return
        if chance() < weather.duplication:
            self.duplicated += 1
            self._send(sock, data, address)
        if chance() < weather.late:
            self.delayed += 1
            heapq.heappush(
                self._late, (time.monotonic() + chance() * weather.late_s, self.delayed, sock, data, address)
            )
        else:
            self._send(sock, data, address)

    def _send(self, sock: socket.socket, data: bytes, address: tuple[str, int]) -> None:
        self.passed += 1
        self.largest_passed = max(self.largest_passed, len(data))
        with contextlib.suppress(OSError):
            sock.sendto(data, address)

    def _pause_s(self) -> float:
        now = time.monotonic()
        if self._moving or (self.weather.moves_every_s and now >= self._move_at):
            self._moving, self._move_at = False, now + self.weather.moves_every_s
            self._move()
        while self._late and self._late[0][0] <= now:
            self._send(*heapq.heappop(self._late)[2:])
        return min(0.02, self._late[0][0] - now) if self._late else 0.02


class TcpRelay(_Relay):
    """Passes connections to `target_port`. While cut nothing is read, written, accepted or closed; `sever` resets all.

    `silence` leaves all connections there are open without ever passing a byte again, as when a host behind a proxy is gone.
    """

    def __init__(self, target_port: int | None = None) -> None:
        """A target that is not known yet is set later, as `target_port`."""
        super().__init__()
        self.target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        """Connections so far."""
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._silent: list[socket.socket] = []
        self._silencing = threading.Event()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, listener: socket.socket) -> None:
        if self.cut:
            threading.Event().wait(0.01)
            return
        front, _ = listener.accept()
        self.accepted += 1
        back = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
        for one, other in ((front, back), (back, front)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ, self._pass)

    def _pass(self, source: socket.socket) -> None:
        if self.cut:
            threading.Event().wait(0.01)
            return
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        if data:
            self._pairs[source].sendall(data)
        else:
            self._drop(source)

    def _drop(self, source: socket.socket) -> None:
        other = self._pairs.pop(source, None)
        if other is None:
            return  # both ends went in the same turn
        self._pairs.pop(other, None)
        for sock in (source, other):
            self._selector.unregister(sock)
            sock.close()

    def sever(self) -> None:
        """Shut every connection down; both ends notice."""
        for sock in list(self._pairs):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def silence(self) -> None:
        """Returns when it has taken effect; connections opened from now on are passed."""
        self._silencing.set()
        deadline = time.monotonic() + 5
        while self._silencing.is_set():
            if time.monotonic() > deadline:
                raise TimeoutError("the relay does not run")
            threading.Event().wait(0.01)

    def _pause_s(self) -> float:
        if self._silencing.is_set():
            for sock in self._pairs:
                self._selector.unregister(sock)
            self._silent += self._pairs
            self._pairs.clear()
            self._silencing.clear()
        return super()._pause_s()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for sock in self._silent:
            sock.close()
