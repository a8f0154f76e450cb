"""Asking a running router why: the page on the metrics port and the command for humans."""

import json
import subprocess
import sys

from llm_request_router.testing import System


def told(system, *words):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "router",
            "explain",
            "--address",
            system.ports.metrics.replace("0.0.0.0", "127.0.0.1"),
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_a_running_router_tells_whom_it_would_choose_and_why(llm_router):
    llm_router.add_worker("tiny")
    answer = told(llm_router, "--model", "tiny", "--input-tokens", "10")
    assert answer.returncode == 0, answer.stderr
    assert "decided by power-of-n" in answer.stdout
    assert "=> worker-0" in answer.stdout
    document = json.loads(told(llm_router, "--model", "tiny", "--method", "round_robin", "--json").stdout)
    assert document["algorithm"]["name"] == "round-robin"
    assert document["outcome"] == {"kind": "chosen", "cluster_id": "worker-0", "rank_depth": 1, "skipped_for_kv": False}
    assert "404" in told(llm_router, "--model", "nobody").stdout
    expressed = told(llm_router, "--model", "tiny", "--method", "wait-and-widen;n=3")
    assert "decided by wait-and-widen (comparator ttft)\nexpression in force: wait-and-widen;n=3\n" in expressed.stdout
    excluded = json.loads(told(llm_router, "--model", "tiny", "--exclude", "worker-0", "--json").stdout)
    assert excluded["candidates"][0]["rule"] == "retry-excluded"


def test_questions_that_make_no_sense_are_refused_in_words(llm_router):
    refused = told(llm_router, "--model", "tiny", "--method", "sticky")
    assert refused.returncode == 1
    assert "unknown routing method 'sticky'" in refused.stderr
    refused = told(llm_router, "--model", "tiny", "--method", "pulsar;widen=2")
    assert (refused.returncode, refused.stderr) == (1, "error: unknown parameter 'widen' for algorithm pulsar\n")
    address = llm_router.ports.metrics.replace("0.0.0.0", "127.0.0.1")
    for path, text in (("/explain", b"`model` is required"), ("/explain?model=m&priority=x", b"whole number")):
        reply = llm_router.request("GET", path, address=address)
        assert reply.status == 400
        assert text in reply.body


def test_from_elsewhere_it_needs_the_token(tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-operators\n")
    with System.start("--operators-token-file", str(token)) as system:
        # A name of the loopback for the resolver, and none that the rule knows.
        address = system.metrics_address.replace("127.0.0.1", "127.1")
        words = [sys.executable, "-m", "router", "explain", "--address", address, "--model", "m"]

        def run(*more):
            return subprocess.run([*words, *more], capture_output=True, text=True, timeout=20, check=False)

        refused = run()
        assert (refused.returncode, "--token-file" in refused.stderr) == (1, True)
        assert "404: nobody serves this target" in run("--token-file", str(token)).stdout
        assert "error: " in run("--token-file", str(tmp_path / "none")).stderr


def test_nobody_at_the_address_is_said_so():
    answer = subprocess.run(
        [sys.executable, "-m", "router", "explain", "--address", "127.0.0.1:1", "--model", "m"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert answer.returncode == 1
    assert "--address" in answer.stderr
