"""What `WatchStargates` streams: one value for all watchers, published on change and as a heartbeat.

Source: docs/control-plane.md, "Watching routers".
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

import structlog

from router.control_plane.discovery import Discovery
from router.control_plane.replicas import Replica
from tunnel_protocol.control.stargate_pb2 import StargateInfo, WatchStargatesResponse

_log = structlog.get_logger()


def build_response(
    replicas: Iterable[Replica], remote_urls: Iterable[str], pylon_dial_addr: str | None
) -> WatchStargatesResponse:
    """The message for `replicas`: unique by address and by id, sorted; `pylon_dial_addr` overrides the dial address."""
    by_address: dict[str, Replica] = {}
    for replica in replicas:
        if replica.stargate_id or not by_address.get(replica.advertise_addr, replica).stargate_id:
            by_address[replica.advertise_addr] = replica
    by_id = {replica.stargate_id or address: replica for address, replica in sorted(by_address.items())}
    dial_addr = (pylon_dial_addr or "").strip()
    return WatchStargatesResponse(
        stargates=[
            StargateInfo(
                stargate_id=replica.stargate_id,
                advertise_addr=replica.advertise_addr,
                http_advertise_addr=replica.http_advertise_addr,
                grpc_pylon_dial_addr=dial_addr,
            )
            for _, replica in sorted(by_id.items())
        ],
        watch_stargate_urls=remote_urls,
    )


def remote_watch_urls(urls: Iterable[str], *, advertise_addr: str, dns_name: str) -> list[str]:
    """URLs of other installations to watch: trimmed, unique by host and port, sorted by them, without this installation."""
    own_port = advertise_addr.rpartition(":")[2]
    own = {
        _watch_key(advertise_addr),
        _watch_key(f"{dns_name}:{own_port}"),
        _watch_key(f"{dns_name.replace('-headless.', '.')}:{own_port}"),
    }
    found: dict[str, str] = {}
    for url in urls:
        trimmed = url.strip()
        key = _watch_key(trimmed)
        if trimmed and key not in own:
            found.setdefault(key, trimmed)
    return [url for _, url in sorted(found.items())]


def _watch_key(url: str) -> str:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return url
    if not parts.hostname or port is None:
        return url
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}"


class WatchCell:
    """The newest value and its waiting readers. A slow reader skips values."""

    def __init__(self) -> None:
        self._value: WatchStargatesResponse | None = None
        self._version = 0
        self._closed = False
        self._changed = asyncio.Event()

    def publish(self, value: WatchStargatesResponse) -> None:
        """Replace the value and wake every reader, even if the value is unchanged."""
        self._value = value
        self._version += 1
        self._wake()

    def close(self) -> None:
        """Publish no further value: `newer` returns None to every reader at once."""
        self._closed = True
        self._wake()

    async def newer(self, seen: int) -> tuple[int, WatchStargatesResponse] | None:
        """Wait for a version above `seen` (0 = none seen) and return it with its value; None after `close`.

        A value without routers is not returned to a reader that has seen none.
        """
        while not self._closed:
            value = self._value
            if value is not None and self._version > seen and (seen or value.stargates or value.watch_stargate_urls):
                return self._version, value
            await self._changed.wait()
        return None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class WatchPublisher:
    """The loop that discovers and publishes; one per process."""

    def __init__(
        self,
        discovery: Discovery,
        cell: WatchCell,
        *,
        poll_ms: int,
        heartbeat_ms: int,
        remote_urls: Iterable[str] = (),
        pylon_dial_addr: str | None = None,
    ) -> None:
        self.discovery = discovery
        self._cell = cell
        self._poll_s = poll_ms / 1000
        self._heartbeat_s = heartbeat_ms / 1000
        self._remote_urls = tuple(remote_urls)
        self._pylon_dial_addr = pylon_dial_addr
        self._published: WatchStargatesResponse | None = None
        self._published_at = 0.0
        self._sooner = asyncio.Event()

    def publish_soon(self) -> None:
        """Begin the next round now: what is to be published has changed."""
        self._sooner.set()

    async def run(self) -> None:
        """Discover and publish until cancelled; at the end, also by failure, every watch stream ends."""
        clock = asyncio.get_running_loop().time
        next_round = clock()
        try:
            while True:
                self.offer(await self.discovery.round(), clock())
                next_round = max(next_round + self._poll_s, clock())
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(next_round):
                        await self._sooner.wait()
                self._sooner.clear()
        finally:
            self._cell.close()

    def offer(self, replicas: list[Replica], now: float) -> bool:
        """Publish `replicas` if they changed or a heartbeat is due; True if published. `now` is monotonic seconds."""
        response = build_response(replicas, self._remote_urls, self._pylon_dial_addr)
        changed = response != self._published
        heartbeat_due = now - self._published_at >= self._heartbeat_s
        if not changed and not heartbeat_due:
            return False
        self._published = response
        self._published_at = now
        self._cell.publish(response)
        _log.debug(
            "published stargate snapshot",
            stargate_count=len(response.stargates),
            remote_watch_url_count=len(response.watch_stargate_urls),
            changed=changed,
            heartbeat_due=heartbeat_due,
        )
        return True
