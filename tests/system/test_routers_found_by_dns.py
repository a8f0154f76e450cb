"""Several routers behind one DNS name: workers that know one of them register with all, and follow as routers come and go."""

from contextlib import contextmanager

import pytest

from llm_request_router.testing import DNS_NAME, System
from support.name_server import name_server_in_a_thread
from support.registered_worker import routable, unroutable

pytestmark = pytest.mark.loop("grpc")


class Service:
    """The SRV records of a headless service."""

    def __init__(self, server):
        self.server = server
        self.pods = {}
        self.publish()

    def publish(self, *names):
        """From now on these pods are the service."""
        records = [f"0 0 {self.pods[name].ports.grpc.rpartition(':')[2]} {name}.{DNS_NAME}." for name in names]
        self.server.table = {(f"_grpc._tcp.{DNS_NAME}.", "SRV"): records} if records else {}

    @contextmanager
    def router(self, name, *options):
        host, port = self.server.address
        with System.start(
            *("--pod-name", name, "--pod-namespace", "ns", "--dns-nameserver", f"{host}:{port}"),
            *("--dns-poll-ms", "50", "--dns-resolver-ttl-ms", "0", *options),
            discovery=True,
        ) as system:
            self.pods[name] = system
            yield system


@contextmanager
def a_service():
    with name_server_in_a_thread() as server:
        yield Service(server)


async def test_a_worker_that_knows_one_router_serves_through_all_of_them():
    with a_service() as service, service.router("r-0") as one, service.router("r-1") as two:
        one.add_worker("m")
        await unroutable(two, "m")
        service.publish("r-0", "r-1")
        await routable(two, "m", "worker-0")
        await routable(one, "m", "worker-0")
        other = two.add_worker("n", options=["--inference-server-id", "seeded-with-two"])
        await routable(one, "n", "seeded-with-two")
        service.publish("r-0")
        # A router that left the service loses its workers, except those that came by its own address.
        await unroutable(two, "m")
        await routable(one, "m")
        other.process.stop()
        await unroutable(one, "n")


async def test_workers_stay_with_all_routers_while_dns_does_not_answer():
    with a_service() as service, service.router("r-0") as one, service.router("r-1") as two:
        service.publish("r-0", "r-1")
        one.add_worker("m")
        await routable(two, "m")
        failures, line = 'stargate_discovery_failures_total{kind="srv"}', "headless service SRV lookup failed"
        # A router that looked before its service was published has failed once already.
        failed, logged = one.metrics().get(failures, 0), one.router.log().count(line)
        service.publish()
        one.router.until(lambda: one.metrics().get(failures, 0) >= failed + 3, "some rounds have failed")
        assert one.metrics()["stargate_discovery_routers"] == 2
        await routable(two, "m")
        assert one.router.log().count(line) == logged + 1


async def test_without_a_grace_time_a_failed_lookup_leaves_a_router_alone():
    with a_service() as service:
        no_grace = "--discovery-grace-ms=0"
        with service.router("r-0", no_grace) as one, service.router("r-1", no_grace) as two:
            service.publish("r-0", "r-1")
            one.add_worker("m")
            await routable(two, "m")
            service.publish()
            await unroutable(two, "m")
            await routable(one, "m")


async def test_regions_that_name_each_other_serve_each_others_workers():
    with a_service() as near, a_service() as far, far.router("f-0") as f0, far.router("f-1") as f1:
        far.publish("f-0", "f-1")
        remote = [f"--remote-stargate-url=http://{f0.ports.grpc}", "--allow-insecure-remote-watch-http"]
        with near.router("n-0", *remote) as n0:
            near.publish("n-0")
            n0.add_worker("m")
            for router in (n0, f0, f1):
                await routable(router, "m", "worker-0")
