"""Key log and qlog of QUIC connections: bounded, and without influence on the connections."""

import json
import resource
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tunnel_protocol.limit import Limit
from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.quic.aioquic_handshake import observers
from tunnel_protocol.quic.aioquic_handshake.observers import ENDED_TRACES, EVENTS, KeyLog, Trace, TraceFiles


def _trace(files: TraceFiles, number: int, events: int = 1) -> Trace:
    trace = files.start_trace(is_client=True, odcid=number.to_bytes(8, "big"))
    for event in range(events):
        trace.log_event(category="transport", event="packet_sent", data={"number": event})
    return trace


def _events(path: Path) -> list[int]:
    (trace,) = json.loads(path.read_text())["traces"]
    return [event["data"]["number"] for event in trace["events"]]


def test_a_trace_is_one_file_named_by_its_connection(tmp_path: Path) -> None:
    files = TraceFiles(tmp_path / "a" / "qlog")
    files.end_trace(_trace(files, 7, 3))
    files.close(20)
    (path,) = (tmp_path / "a" / "qlog").iterdir()
    assert path.name == "0000000000000007.qlog"
    document = json.loads(path.read_text())
    assert (document["qlog_format"], document["qlog_version"]) == ("JSON", "0.3")
    assert document["traces"][0]["common_fields"] == {"ODCID": "0000000000000007", "events_left_out": 0}
    assert document["traces"][0]["vantage_point"] == {"name": "aioquic", "type": "client"}
    assert _events(path) == [0, 1, 2]


def test_a_trace_without_events_is_a_file_too(tmp_path: Path) -> None:
    files = TraceFiles(tmp_path)
    files.end_trace(_trace(files, 1, 0))
    files.close(20)
    assert _events(tmp_path / "0000000000000001.qlog") == []


def test_a_trace_keeps_the_last_events(tmp_path: Path) -> None:
    assert EVENTS.pieces is not None
    files = TraceFiles(tmp_path)
    files.end_trace(_trace(files, 1, EVENTS.pieces + 5))
    files.close(60)
    path = tmp_path / "0000000000000001.qlog"
    assert _events(path) == list(range(5, EVENTS.pieces + 5))
    assert json.loads(path.read_text())["traces"][0]["common_fields"]["events_left_out"] == 5


def test_traces_wait_in_a_bounded_queue(tmp_path: Path) -> None:
    assert ENDED_TRACES.pieces is not None
    files = TraceFiles(tmp_path)
    traces = 10 * ENDED_TRACES.pieces
    with capture_logs() as lines:
        for number in range(traces):
            files.end_trace(_trace(files, number, 0))
        files.close(20)
    assert len(list(tmp_path.iterdir())) == traces - files.dropped >= ENDED_TRACES.pieces
    assert [line["event"] for line in lines] == ["qlog trace left out; there are too many"] * files.dropped


def test_the_number_of_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "TRACE_FILES", Limit("few", pieces=5))
    files = TraceFiles(tmp_path)
    with capture_logs():
        for number in range(8):
            files.end_trace(_trace(files, number))
            files.close(20)
    assert files.dropped == 3
    assert len(list(tmp_path.iterdir())) == 5


def test_a_full_disk_or_a_lost_directory_costs_the_trace_and_a_line(tmp_path: Path) -> None:
    directory = tmp_path / "qlog"
    files = TraceFiles(directory)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with capture_logs() as lines:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
            files.end_trace(_trace(files, 1))
            files.close(20)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        directory.rmdir()
        files.end_trace(_trace(files, 2))
        files.close(20)
    assert files.dropped == 2
    assert [line["event"] for line in lines] == ["qlog trace cannot be written"] * 2
    assert "File too large" in lines[0]["error"]
    assert "No such file" in lines[1]["error"]


def test_a_directory_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(OSError, match="proc"):
        TraceFiles(Path("/proc/nope"))


def test_secrets_go_to_the_writer_line_by_line(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "keys", str, name="key log")
    log = KeyLog(writer)
    log.write("CLIENT_RANDOM 00 11\n")
    log.flush()
    assert writer.close(20)
    assert (tmp_path / "keys").read_text() == "CLIENT_RANDOM 00 11\n"
