"""What a router writes about its tunnels on request: qlog traces, and TLS secrets that open a capture."""

import json
import re

from llm_request_router.testing import System
from support.receipts import MODEL


def test_qlog_and_key_log_of_a_running_router(tmp_path):
    qlog, keylog = tmp_path / "qlog", tmp_path / "keys"
    with System.start(f"--quic-qlog-dir={qlog}", f"--quic-keylog-path={keylog}") as system:
        system.add_worker(MODEL)
        assert system.chat(MODEL, "a word that must not be in a trace").status == 200
        assert system.router.stop() == 0
    (trace,) = qlog.iterdir()
    document = json.loads(trace.read_text())
    events = document["traces"][0]["events"]
    names = {event["name"] for event in events}
    assert {"transport:packet_sent", "transport:packet_received"} <= names
    frames = [frame for event in events for frame in event["data"].get("frames", [])]
    kinds = {frame["frame_type"] for frame in frames}
    assert {"ack", "crypto", "stream", "handshake_done", "connection_close"} <= kinds
    streams = {frame["stream_id"] for frame in frames if frame["frame_type"] == "stream"}
    assert {0, 1} <= streams, "the handshake of the worker and an exchange of ours"
    assert "must not be in a trace" not in trace.read_text()
    lines = keylog.read_text().splitlines()
    assert all(re.fullmatch(r"[A-Z_0-9]+ [0-9a-f]{64} [0-9a-f]{64,96}", line) for line in lines)
    labels = [line.split()[0] for line in lines]
    assert sorted(labels) == sorted(
        f"{side}_{what}" for side in ("CLIENT", "SERVER") for what in ("HANDSHAKE_TRAFFIC_SECRET", "TRAFFIC_SECRET_0")
    )
