"""Userspace relays that can be cut: packets vanish without a word, as they do when a cable or a firewall state goes."""

import contextlib
import selectors
import socket
import threading
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
            for key, _ in self._selector.select(0.05):
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)


class UdpRelay(_Relay):
    """Passes datagrams to `target_port` and back; one socket towards the target per source address."""

    def __init__(self, target_port: int) -> None:
        super().__init__()
        self._target = ("127.0.0.1", target_port)
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.bind(("127.0.0.1", 0))
        self.port: int = self._front.getsockname()[1]
        self._backs: dict[tuple[str, int], socket.socket] = {}
        self._selector.register(self._front, selectors.EVENT_READ, self._from_front)

    def _from_front(self, front: socket.socket) -> None:
        data, source = front.recvfrom(65536)
        if self.cut:
            return
        back = self._backs.get(source)
        if back is None:
            back = self._backs[source] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            back.connect(self._target)
            self._selector.register(back, selectors.EVENT_READ, lambda sock: self._from_back(sock, source))
        back.send(data)

    def _from_back(self, back: socket.socket, source: tuple[str, int]) -> None:
        data = back.recv(65536)
        if not self.cut:
            self._front.sendto(data, source)


class TcpRelay(_Relay):
    """Passes connections to `target_port`. While cut nothing is read, written, accepted or closed; `sever` resets all."""

    def __init__(self, target_port: int) -> None:
        super().__init__()
        self._target = ("127.0.0.1", target_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, listener: socket.socket) -> None:
        if self.cut:
            threading.Event().wait(0.01)
            return
        front, _ = listener.accept()
        back = socket.create_connection(self._target, timeout=5)
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
