"""Floods on the gRPC ports of a running router: the connection is closed, the router goes on, and a metric counts it."""

import pytest

from llm_request_router.testing import System
from support import rapid_reset
from support.waiting import wait_until


@pytest.mark.parametrize("port", ["grpc", "model_discovery"])
def test_a_connection_that_is_closed_for_a_flood_is_counted_by_reason(llm_router: System, port: str) -> None:
    assert not [name for name in llm_router.metrics() if name.startswith("stargate_grpc_connections_closed_total{")]
    address = getattr(llm_router.ports, port)
    assert rapid_reset.flood(int(address.rpartition(":")[2]), "/no.such.Service/Method") > 0
    wait_until(lambda: llm_router.metrics().get('stargate_grpc_connections_closed_total{reason="resets"}') == 1)
    assert llm_router.request("GET", "/healthz").status == 200
