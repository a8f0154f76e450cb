"""What operators hear of tokens and certificates that are not accepted."""

import pytest
from structlog.testing import capture_logs

from router.telemetry.credential_failures import MAX_KNOWN, Credential, CredentialFailures
from router.telemetry.metrics import Metrics
from tunnel_protocol.quic.tls import is_certificate_error

TOKEN = Credential.TUNNEL_TOKEN


def test_a_failure_is_told_on_change_with_id_and_address_and_counted_each_time():
    metrics = Metrics()
    failures = CredentialFailures(metrics)
    with capture_logs() as lines:
        for _ in range(3):
            failures.failed(TOKEN, "unknown token", host="10.0.0.1", inference_server_id="w1")
        failures.failed(TOKEN, "gateway away", host="10.0.0.1", inference_server_id="w1")
        failures.failed(TOKEN, "gateway away", host="10.0.0.2", inference_server_id="w2")
        failures.passed(TOKEN, host="10.0.0.1", inference_server_id="w1")
        failures.passed(TOKEN, host="10.0.0.1", inference_server_id="w1")
        failures.failed(TOKEN, "unknown token", host="10.0.0.1", inference_server_id="w1")
    assert [(line["event"], line.get("error"), line["inference_server_id"], line["peer"]) for line in lines] == [
        ("reverse handshake authentication failed", "unknown token", "w1", "10.0.0.1"),
        ("reverse handshake authentication failed", "gateway away", "w1", "10.0.0.1"),
        ("reverse handshake authentication failed", "gateway away", "w2", "10.0.0.2"),
        ("reverse handshake authentication works again", None, "w1", "10.0.0.1"),
        ("reverse handshake authentication failed", "unknown token", "w1", "10.0.0.1"),
    ]
    series = 'worker_credential_failures_total{address="10.0.0.1",credential="tunnel_token",inference_server_id="w1"} 5'
    assert series in metrics.render(additional=True).decode()


def test_the_memory_of_failures_is_bounded():
    metrics = Metrics()
    failures = CredentialFailures(metrics)
    with capture_logs() as lines:
        for number in range(MAX_KNOWN + 1):
            failures.failed(TOKEN, "no", host=f"10.{number}")
        failures.failed(TOKEN, "no", host="10.0")
    assert len(lines) == MAX_KNOWN + 2
    assert metrics.worker_credential_failures_total.series() == MAX_KNOWN + 1
    assert metrics.worker_credential_failures_total.value(("tunnel_token", "", "10.0")) == 2


@pytest.mark.parametrize(
    ("code", "expected"), [(None, False), (0, False), (42, False), (0x12A, True), (0x130, True), (0x178, False)]
)
def test_certificate_alerts_are_told_from_other_ends(code, expected):
    assert is_certificate_error(code) is expected
