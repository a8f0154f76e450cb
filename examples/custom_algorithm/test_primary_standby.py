"""The installed algorithm in a real router: `lb.json` is its policy, two workers are two clusters."""

import json
from pathlib import Path

import pytest

POLICY = Path(__file__).with_name("lb.json")


def chosen(router):
    """The cluster that a request would go to now."""
    reply = router.request("GET", "/explain?model=tiny-model", address=router.metrics_address)
    return json.loads(reply.body)["outcome"].get("cluster_id")


@pytest.mark.llm_router_options(f"--lb-config-path={POLICY}")
def test_the_standby_serves_when_the_primary_has_gone(llm_router):
    llm_router.add_worker("tiny-model", options=["--cluster-id", "gpu-west"])
    assert chosen(llm_router) == "gpu-west"

    llm_router.add_worker("tiny-model", options=["--cluster-id", "gpu-east"])
    primary = llm_router.workers[-1].process
    llm_router.router.until(lambda: chosen(llm_router) == "gpu-east" or None, "the primary is chosen")
    assert llm_router.chat("tiny-model").status == 200

    primary.kill()
    llm_router.router.until(lambda: chosen(llm_router) == "gpu-west" or None, "the standby is chosen")
    assert llm_router.chat("tiny-model").status == 200
