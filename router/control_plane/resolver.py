"""DNS lookups for discovery with dnspython: one try with a short timeout; positive answers are cached up to a limit.

Imported only with discovery: the library takes 9 MiB.
"""

import time
from collections.abc import Callable
from typing import cast

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver
from dns.rdtypes.IN.SRV import SRV

from router.control_plane.replicas import LookupFailedError, SrvRecord


class Resolver:
    """Resolves with the system's configuration or one name server, with limited time and memory."""

    def __init__(
        self,
        *,
        ttl_cap_s: float,
        timeout_s: float = 1.0,
        nameserver: tuple[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`nameserver`: the (address, port) of a server to use instead of the system's. Times in seconds.

        Raises `LookupFailedError` if the system's configuration is needed and not usable.
        """
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=nameserver is None)
        except dns.exception.DNSException as error:
            raise LookupFailedError("failed to read system resolver config") from error
        if nameserver is not None:
            address, self._resolver.port = nameserver
            self._resolver.nameservers = [address]
        self._ttl_cap_s = ttl_cap_s
        self._timeout_s = timeout_s
        self._clock = clock
        # One entry per name and record type; what is no longer valid is dropped with the next new one.
        self._answers: dict[tuple[str, str], tuple[dns.resolver.Answer, float]] = {}

    async def srv(self, name: str) -> list[SrvRecord]:
        """The SRV records of `name`, with the addresses that came with them. Raises `LookupFailedError`."""
        answer = await self._resolve(name, "SRV")
        known: dict[str, list[str]] = {}
        for rrset in answer.response.additional:
            if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                known.setdefault(str(rrset.name).lower(), []).extend(record.to_text() for record in rrset)
        records = [cast("SRV", record) for record in answer]
        return [SrvRecord(str(one.target), one.port, tuple(known.get(str(one.target).lower(), ()))) for one in records]

    async def addresses(self, name: str) -> list[str]:
        """The IPv4 and IPv6 addresses of `name`. Raises `LookupFailedError` if it has neither."""
        found: list[str] = []
        failure: LookupFailedError | None = None
        for record_type in ("A", "AAAA"):
            try:
                found += [record.to_text() for record in await self._resolve(name, record_type)]
            except LookupFailedError as error:
                failure = failure or error
        if not found and failure is not None:
            raise failure
        return found

    async def _resolve(self, name: str, record_type: str) -> dns.resolver.Answer:
        known = self._answers.get((name, record_type))
        if known is not None and self._clock() < known[1]:
            return known[0]
        try:
            answer = await self._resolver.resolve(name, record_type, lifetime=self._timeout_s, search=True)
        except dns.exception.DNSException as error:
            raise LookupFailedError(f"{type(error).__name__}: {error}") from error
        except OSError as error:
            raise LookupFailedError(f"{record_type} lookup: {error.strerror or type(error).__name__}") from error
        ttl_s = answer.rrset.ttl if answer.rrset is not None else 0
        now = self._clock()
        self._answers = {key: found for key, found in self._answers.items() if now < found[1]}
        self._answers[(name, record_type)] = (answer, now + min(ttl_s, self._ttl_cap_s))
        return answer
