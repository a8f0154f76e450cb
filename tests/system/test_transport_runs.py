"""The transport benchmark over real sockets: figures, samples, failures and deadlines."""

import asyncio
import json

import pytest

from benchmarks.transport import command
from benchmarks.transport.client import RunTimeoutError, connected_client
from benchmarks.transport.measure import measure, measure_run
from benchmarks.transport.server import running_server
from benchmarks.transport.settings import TransportSettings

pytestmark = pytest.mark.loop("uvloop")


def nothing(*_):
    pass


SMALL = {"requests": 200, "concurrency": 16, "warmup_requests": 20}


@pytest.mark.parametrize("server_process", [False, True], ids=["one-process", "two-processes"])
async def test_every_request_is_answered_in_full_and_sampled(server_process):
    settings = TransportSettings(
        **SMALL,
        quic_connections=3,
        request_body_bytes=70_000,
        response_body_bytes=300_001,
        server_process=server_process,
    )
    run = await measure_run("raw-quic", 0, settings, nothing)
    assert [sample.error for sample in run.samples if not sample.ok] == []
    assert sorted(sample.request_index for sample in run.samples) == list(range(200))
    for sample in run.samples:
        assert sample.connection_index == sample.request_index % 3
        assert (sample.response_status, sample.request_bytes, sample.response_bytes) == (200, 70_000, 300_001)
        assert sample.response_headers_us is not None
        assert sample.first_body_us is not None
        assert 0 < sample.response_headers_us <= sample.first_body_us < sample.completion_us
    cpu = run.summary.cpu
    assert (cpu.server_s is not None and cpu.server_s > 0) == server_process
    assert cpu.total_s == pytest.approx(cpu.client_s + cpu.server_s if server_process else cpu.total_s)


async def test_requests_without_bodies_have_no_first_byte_of_one():
    settings = TransportSettings(**SMALL, request_body_bytes=0, response_body_bytes=0)
    run = await measure_run("raw-quic", 0, settings, nothing)
    assert run.summary.success_count == 200
    assert run.summary.first_body_us is None
    assert run.summary.response_headers_us is not None


async def test_more_requests_than_granted_streams_wait_for_one_and_none_is_lost(monkeypatch):
    monkeypatch.setattr("benchmarks.transport.server.MAX_STREAMS", 4)
    run = await measure_run("raw-quic", 0, TransportSettings(**SMALL), nothing)
    assert run.summary.success_count == 200


async def test_warmup_trials_are_kept_apart_and_progress_is_told():
    told = []
    settings = TransportSettings(**SMALL, trials=2, warmup_trials=1, idle_streams=10, cooldown_ms=1)
    results = await measure(settings, lambda *what: told.append(what))
    assert (len(results.runs), len(results.warmup_runs)) == (2, 1)
    assert ("raw-quic, trial 2", 200, 200) in told
    assert results.aggregates[0].throughput_rps.count == 2


async def test_a_server_process_that_dies_fails_the_rest_of_the_requests_at_once():
    settings = TransportSettings(requests=100_000, concurrency=64, warmup_requests=0, server_process=True)
    async with running_server(settings) as server, connected_client(server, settings) as client:
        assert server.process is not None
        sending = asyncio.create_task(client.send(settings.requests, lambda done, _: done and server.process.kill()))
        samples = await asyncio.wait_for(sending, 20)
        assert await server.cpu_s() is None
    assert len(samples) == 100_000
    assert any(sample.ok for sample in samples)
    errors = {sample.error for sample in samples if not sample.ok}
    assert "connection lost: the server's process has ended" in errors


async def test_requests_that_take_too_long_fail_one_by_one(monkeypatch):
    monkeypatch.setattr("benchmarks.transport.server._Answer.on_end", nothing)
    settings = TransportSettings(requests=10, concurrency=5, warmup_requests=0, request_timeout_ms=300)
    run = await measure_run("raw-quic", 0, settings, nothing)
    assert {sample.error for sample in run.samples} == {"no complete response within 300 ms"}
    assert run.summary.failure_count == 10


async def test_a_run_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr("benchmarks.transport.server._Answer.on_end", nothing)
    settings = TransportSettings(requests=10, concurrency=5, warmup_requests=0, run_timeout_ms=300)
    with pytest.raises(RunTimeoutError) as caught:
        await measure_run("raw-quic", 0, settings, nothing)
    assert (caught.value.finished, caught.value.wanted) == (0, 10)


def answered_with(data):
    def on_end(self):
        self._stream.write(data, fin=True)

    return on_end


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda self: self._stream.reset(7), "reset by the server (code 7)"),
        (answered_with(b"nonsense" * 9), None),
        (answered_with(b""), "expected header message, got none"),
    ],
    ids=["reset", "nonsense", "nothing"],
)
async def test_wrong_answers_are_failures_with_a_reason(monkeypatch, answer, error):
    monkeypatch.setattr("benchmarks.transport.server._Answer.on_end", answer)
    run = await measure_run("raw-quic", 0, TransportSettings(requests=5, warmup_requests=0), nothing)
    assert run.summary.failure_count == 5
    assert all(sample.error for sample in run.samples)
    assert error is None or {sample.error for sample in run.samples} == {error}


def test_the_command_leaves_metadata_summary_report_and_samples(tmp_path, capsys):
    arguments = ["--requests", "50", "--warmup-requests", "5", "--trials", "2", "--output-dir", str(tmp_path)]
    command.run(arguments)
    printed = capsys.readouterr().out
    assert (tmp_path / "transport-report.md").read_text() in printed
    summary = json.loads((tmp_path / "transport-summary.json").read_text())
    assert set(summary) == {"config", "summaries", "aggregates", "comparisons", "warmup_run_count"}
    assert [one["success_count"] for one in summary["summaries"]] == [50, 50]
    for trial in (1, 2):
        lines = (tmp_path / f"samples-raw-quic-trial-{trial}.jsonl").read_text().splitlines()
        assert [json.loads(line)["request_index"] for line in lines] == list(range(50))
    assert json.loads((tmp_path / "run-metadata.json").read_text())["driver_mode"] == "both ends in one process"


def test_the_matrix_runs_all_its_rows(tmp_path, capsys):
    command.run(["--matrix", "--scale", "0.002", "--output-dir", str(tmp_path)])
    table = (tmp_path / "transport-matrix.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("| raw-quic |") == 8
    assert (tmp_path / "token-stream" / "transport-summary.json").exists()


def test_failed_requests_are_told_and_make_the_exit_status_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.transport.server._Answer.on_end", lambda self: self._stream.reset(9))
    with pytest.raises(SystemExit) as caught:
        command.run(["--requests", "20", "--warmup-requests", "0", "--output-dir", str(tmp_path)])
    assert caught.value.code == 1
    assert "- 20 times: reset by the server (code 9)" in capsys.readouterr().out
