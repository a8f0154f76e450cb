"""What probes, operators and workers see of a router that is stopped, told to reload, or ends."""

import signal
import time
from pathlib import Path

from certs import make_self_signed
from llm_request_router.testing import System


def readyz(system: System) -> int:
    return system.request("GET", "/readyz").status


def test_a_process_that_stood_still_is_not_ready_for_a_while_and_then_is_again() -> None:
    with System.start() as system:
        system.router.until(lambda: readyz(system) == 200 or None, "ready")
        system.router.send(signal.SIGSTOP)
        since = time.monotonic()
        system.router.until(lambda: time.monotonic() > since + 3.2 or None, "it stood still for long enough")
        system.router.send(signal.SIGCONT)
        assert readyz(system) == 503
        assert system.metrics()['stargate_not_ready{reason="event_loop_stalled"}'] == 1
        system.router.until_logged('not ready reason="event_loop_stalled"')
        system.router.until(lambda: readyz(system) == 200 or None, "ready again", timeout_s=20)
        assert system.metrics()['stargate_not_ready{reason="event_loop_stalled"}'] == 0
        system.router.until_logged('reason against readiness is gone reason="event_loop_stalled"')


def test_a_hangup_reloads_policy_and_certificate_and_opens_the_key_log_again(tmp_path: Path) -> None:
    policy, keys = tmp_path / "lb.json", tmp_path / "keys.log"
    policy.write_text('{"default": "power-of-n"}')
    first, second = make_self_signed(["stargate"]), make_self_signed(["stargate"])
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    cert.write_bytes(first.cert_pem)
    key.write_bytes(first.key_pem)
    options = ["--lb-config-path", str(policy), "--lb-config-poll-ms", "3600000", "--tls-poll-ms", "3600000"]
    options += ["--tls-cert-path", str(cert), "--tls-key-path", str(key), "--quic-keylog-path", str(keys)]
    with System.start(*options) as system:
        system.add_worker("m")
        system.router.until(lambda: (keys.exists() and keys.stat().st_size) or None, "keys were logged")
        policy.write_text('{"default": "round-robin"}')
        cert.write_bytes(second.cert_pem)
        key.write_bytes(second.key_pem)
        keys.rename(tmp_path / "keys.log.1")
        system.router.send(signal.SIGHUP)
        system.router.until_logged("default_lb=round-robin")
        system.router.until_logged("TLS material reloaded")
        system.router.until(lambda: keys.exists() or None, "the key log was opened again")
        system.add_worker("m")
        system.router.until(lambda: keys.stat().st_size or None, "keys are logged there")
        assert system.chat("m").status == 200


def test_a_hangup_with_files_that_cannot_be_used_keeps_the_old_ones(tmp_path: Path) -> None:
    policy = tmp_path / "lb.json"
    policy.write_text('{"default": "round-robin"}')
    with System.start("--lb-config-path", str(policy), "--lb-config-poll-ms", "3600000") as system:
        system.add_worker("m")
        policy.write_text("{")
        system.router.send(signal.SIGHUP)
        system.router.until_logged("load balancer config rejected")
        assert system.chat("m").status == 200
        system.router.send(signal.SIGTERM)
        assert system.router.wait() == 0


def test_hangups_during_start_and_drain_change_nothing() -> None:
    with System.start() as system:
        for _ in range(20):
            system.router.send(signal.SIGHUP)
        system.router.send(signal.SIGTERM)
        system.router.send(signal.SIGHUP)
        assert system.router.wait() == 0


def test_a_worker_is_told_that_the_router_shuts_down() -> None:
    with System.start() as system:
        worker = system.add_worker("m")
        system.router.send(signal.SIGTERM)
        assert system.router.wait() == 0
        assert "shutdown" in worker.process.until_logged("reverse tunnel connection closed")
