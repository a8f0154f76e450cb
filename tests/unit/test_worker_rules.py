"""The worker's side: command line, the checks of a request, its answers, statistics, and the cutting of event streams."""

import email.utils
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate_client.answers import Problem, engine_head
from stargate_client.request_rules import check_body, check_queue, engine_headers, facts
from stargate_client.settings import QueueAdmission, RetryPolicy, parse, read_token
from stargate_client.sse import MAX_EVENT_BYTES, EventCutter, EventKind, EventTooLargeError, kind_of
from stargate_client.stats import LiveRequest, ModelLoad, State
from stargate_client.usage import output_tokens
from tunnel_protocol.head import RequestHead

BASE = ("--upstream-http-base-url=http://127.0.0.1:1/", "--backend-connectivity=reverse", "--quic-insecure")
NEEDED = [(b"x-request-id", b"r1"), (b"x-model", b"m"), (b"x-input-tokens", b"7")]


def settings(*words, environment=None):
    return parse([*BASE, *words], environment or {})


def head(*headers, method=b"POST", path=b"/v1/chat/completions"):
    return RequestHead(method, path, list(headers))


# --- command line ----------------------------------------------------------------------------------------------------


def test_argument_list_of_a_compute_plane_is_accepted(tmp_path):
    token = tmp_path / "token"
    token.write_text(" secret\n")
    found = parse(
        [
            "--upstream-http-base-url=http://127.0.0.1:8000",
            "--stargate-address=router:50071",
            "--inference-server-id=0-sr-1",
            f"--auth-token-file={token}",
            "--backend-connectivity=reverse",
            "--initial-input-tps=100",
            "--upstream-health-path=ready",
            "--quic-insecure",
            "--model-name=b",
            "--model-name=a",
        ],
        {},
    )
    assert found.models == ("a", "b")
    assert found.cluster_id == "0-sr-1"
    assert found.health_paths == ("/ready", "/health", "/v1/health/ready")
    assert read_token(found) == "secret"
    token.write_text("renewed")
    assert read_token(found) == "renewed"


def test_argument_list_of_the_benchmark_runner_is_accepted():
    found = settings(
        "--kv-cache-stats-path=/kv-cache/stats",
        "--min-update-interval-ms=100",
        "--disable-bringup",
        "--active-canary-interval-ms=0",
        "--initial-input-tps=5",
        "--benchmark-pin-input-tps",
        "--engine-stats-stream=off",
    )
    assert found.pin_input_tps
    assert found.ignored == ("--engine-stats-stream",)


@pytest.mark.parametrize(
    "words",
    [
        ["--upstream-http-base-url=ftp://x"],
        [*BASE[:1], "--quic-insecure"],
        [*BASE, "--tunnel-protocol=http3"],
        [*BASE, "--benchmark-pin-input-tps"],
        [*BASE, "--initial-input-tps=nan"],
        [*BASE, "--initial-input-tps=0"],
        [*BASE, "--model-name= "],
        [*BASE, "--stargate-address="],
        [*BASE, "--stargate-address= "],
        [*BASE, "--min-update-interval-ms=0"],
        [*BASE, "--pylon-require-upstream-retry-header=yes"],
        [*BASE, "--pylon-retryable-upstream-status-codes=7"],
        BASE[:2],
    ],
)
def test_what_cannot_work_is_refused_before_any_traffic(words):
    with pytest.raises(SystemExit) as refused:
        parse(list(words), {})
    assert refused.value.code == 2


def test_environment_stands_behind_the_command_line():
    environment = {"STARGATE_AUTH_TOKEN": "from-env", "STARGATE_QUIC_INSECURE": "true"}
    assert read_token(settings(environment=environment)) == "from-env"
    assert read_token(settings("--auth-token=mine", environment=environment)) == "mine"
    with pytest.raises(SystemExit):
        settings(environment={"STARGATE_QUIC_INSECURE": "1"})


# --- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ([], "missing required x-request-id header"),
        ([(b"x-request-id", b" ")], "missing required x-request-id header"),
        ([(b"x-request-id", b"\xff")], "missing required x-request-id header"),
        (NEEDED[:1], "missing required x-model header"),
        (NEEDED[:2], "missing required x-input-tokens header"),
        ([*NEEDED[:2], (b"x-input-tokens", b"")], "invalid x-input-tokens header"),
        ([*NEEDED[:2], (b"x-input-tokens", b"18446744073709551616")], "invalid x-input-tokens header"),
        ([*NEEDED, (b"x-priority", b"")], "invalid x-priority header"),
        ([*NEEDED, (b"x-priority", b"4294967296")], "invalid x-priority header"),
    ],
)
def test_first_missing_or_bad_header_is_named(headers, detail):
    with pytest.raises(Problem) as refused:
        facts(head(*headers))
    assert (refused.value.status, refused.value.detail) == (400, detail)


def test_first_value_of_a_repeated_header_counts():
    found = facts(head(*NEEDED, (b"x-model", b"other"), (b"x-priority", b"3")))
    assert (found.model, found.input_tokens, found.priority) == ("m", 7, 3)


@pytest.mark.parametrize(
    ("method", "path", "body", "detail"),
    [
        (b"POST", b"/v1/chat/completions", b'{"stream":false}', "/v1/chat/completions requests must set stream=true"),
        (b"POST", b"/v1/responses", b"{}", "/v1/responses requests must set stream=true"),
        (b"POST", b"/v1/responses", b'{"stream":1}', "/v1/responses requests must set stream=true"),
        (b"POST", b"/v1/embeddings", b"", "request body must be valid JSON"),
        (b"GET", b"/v1/models", b"no", "request body must be valid JSON"),
        (b"POST", b"/v1/embeddings", b'{"input":1}', None),
        (b"POST", b"/v1/chat/completions", b'{"stream":true}', None),
    ],
)
def test_bodies(method, path, body, detail):
    if detail is None:
        check_body(method, path, body)
        return
    with pytest.raises(Problem) as refused:
        check_body(method, path, body)
    assert refused.value.detail == detail


def test_priority_headers_for_the_engine_and_none_of_the_tunnel():
    sent = [*NEEDED, (b"x-dynamo-request-priority", b"9"), (b"x-stargate-expected-queue-ms", b"5"), (b"host", b"h")]
    assert engine_headers(head(*sent), facts(head(*NEEDED, (b"x-priority", b"7"))), settings())[-2:] == [
        (b"x-dynamo-request-priority", b"3593"),
        (b"x-dynamo-request-strict-priority", b"0"),
    ]
    assert engine_headers(head(*sent), facts(head(*NEEDED)), settings())[-2][1] == b"0"
    passed = engine_headers(head(*sent), facts(head(*NEEDED)), settings("--pylon-upstream-backend=Passthrough"))
    assert passed == NEEDED
    assert engine_headers(head(*sent), None, settings()) == NEEDED


# --- answers ---------------------------------------------------------------------------------------------------------


def test_retry_metadata_needs_the_engines_signal_and_cannot_be_spoofed():
    policy = RetryPolicy()
    plain = engine_head(503, [(b"x-stargate-retryable", b"true"), (b"retry-after", b"3")], policy)
    assert plain.headers == [(b"retry-after", b"3")]
    marked = engine_head(429, [(b"x-stargate-upstream-retryable", b"TRUE"), (b"retry-after", b"3")], policy)
    assert dict(marked.headers) == {
        b"retry-after": b"3",
        b"x-stargate-retryable": b"true",
        b"x-stargate-retry-reason": b"upstream_admission_rejected",
        b"x-stargate-retry-after-ms": b"3000",
    }
    assert engine_head(500, [(b"x-stargate-upstream-retryable", b"true")], policy).headers == []


def test_retry_after_may_be_a_date():
    policy = RetryPolicy(require_header=False)
    past = email.utils.formatdate(time.time() - 100, usegmt=True).encode()
    assert dict(engine_head(503, [(b"retry-after", past)], policy).headers)[b"x-stargate-retry-after-ms"] == b"0"
    assert b"x-stargate-retry-after-ms" not in dict(engine_head(503, [(b"retry-after", b"soon")], policy).headers)


def test_queue_refusal_tells_what_was_compared():
    load = ModelLoad(100.0, pinned=True)
    load.begin("other", LiveRequest(50, 0, 0.0), 0)
    asked = head(*NEEDED, (b"x-stargate-expected-queue-ms", b"100"))
    with pytest.raises(Problem) as refused:
        check_queue(asked, facts(asked), load, QueueAdmission(retry_after_ms=9))
    document = json.loads(refused.value.body())
    assert document["title"] == "Too Many Requests"
    assert (document["expected_queue_ms"], document["actual_queue_ms"], document["threshold_ms"]) == (100, 500, 125)
    assert dict(refused.value.head().headers)[b"x-stargate-retry-after-ms"] == b"9"
    for admission, request in (
        (QueueAdmission(enabled=False), asked),
        (QueueAdmission(), head(*NEEDED)),
        (QueueAdmission(), head(*NEEDED, (b"x-stargate-expected-queue-ms", b"475"))),
    ):
        check_queue(request, facts(request), load, admission)
    check_queue(asked, facts(asked), ModelLoad(), QueueAdmission())


def test_a_request_is_not_refused_for_its_queue_while_the_engine_has_a_free_slot():
    load = ModelLoad(100.0, pinned=True, max_engine_concurrency=2)
    asked = head(*NEEDED, (b"x-stargate-expected-queue-ms", b"0"))
    for other in ("r1", "prefill"):  # the request itself is among the running ones
        load.begin(other, LiveRequest(100_000, 0, 0.0), 0)
    check_queue(asked, facts(asked), load, QueueAdmission())
    decoding = LiveRequest(0, 0, 0.0)
    decoding.advance(State.OUTPUT, 1.0)
    load.begin("decoding", decoding, 0)
    with pytest.raises(Problem) as refused:
        check_queue(asked, facts(asked), load, QueueAdmission())
    assert json.loads(refused.value.body())["actual_queue_ms"] == 1_000_000


# --- statistics ------------------------------------------------------------------------------------------------------


def test_the_concurrency_of_the_engine_is_told_if_it_is_known_and_estimates_stay():
    assert settings("--max-engine-concurrency=25").max_engine_concurrency == 25
    assert settings().max_engine_concurrency == 0
    load = ModelLoad(100.0, pinned=True, max_engine_concurrency=25)
    load.begin("a", LiveRequest(20, 2, 0.0), 1)
    told = load.snapshot(2.0)
    assert told.max_engine_concurrency == 25
    assert dict(told.queue_time_estimate_ms_by_priority) == {2: 200}
    assert ModelLoad().snapshot(1.0).max_engine_concurrency == 0


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
def test_a_concurrency_that_is_no_positive_integer_is_a_usage_error(value):
    with pytest.raises(SystemExit):
        settings(f"--max-engine-concurrency={value}")


def test_the_concurrency_fits_its_field():
    load = ModelLoad(max_engine_concurrency=settings(f"--max-engine-concurrency={1 << 70}").max_engine_concurrency)
    assert load.snapshot(0.0).max_engine_concurrency == (1 << 64) - 1


def test_calibration_of_output_tokens_is_an_unknown_argument(capsys):
    with pytest.raises(SystemExit) as ended:
        settings("--output-token-calibration=off")
    assert ended.value.code == 2
    assert "--output-token-calibration=off" in capsys.readouterr().err


def test_estimates_by_priority_are_cumulative():
    load = ModelLoad(100.0, pinned=True)
    load.begin("a", LiveRequest(20, 2, 0.0), 1)
    processing = LiveRequest(30, 4, 0.0)
    load.begin("b", processing, 2)
    processing.advance(State.INPUT, 1.0)
    load.begin("c", LiveRequest(0, 0, 0.0), 3)
    told = load.snapshot(2.0)
    assert dict(told.queue_time_estimate_ms_by_priority) == {0: 300, 2: 500}
    assert (told.queue_size, told.queued_input_size, told.num_running_queries) == (3, 50, 3)
    assert (told.input_processing_queries, told.output_generation_queries) == (1, 0)
    assert told.stats_observed_at_unix_ms == 3


def complete(load, number, tokens, first_s, end_s, output):
    request = LiveRequest(tokens, 0, 0.0)
    load.begin(f"r{number}", request, 0)
    request.advance(State.OUTPUT, first_s)
    request.output_tokens = output
    load.end(f"r{number}", request, end_s, 0, complete=True)


def test_prompt_throughput_is_told_from_the_fifth_sample_on():
    load = ModelLoad()
    for number in range(4):
        complete(load, number, 50, 0.5, 1.0, 0)
    assert load.input_tps == 0.0
    complete(load, 5, 50, 0.5, 1.0, 0)
    assert load.input_tps == 100.0


def test_configured_throughput_counts_as_five_samples_and_pinned_never_moves():
    load, pinned = ModelLoad(100.0), ModelLoad(100.0, pinned=True)
    for one in (load, pinned):
        complete(one, 1, 100, 0.5, 1.0, 0)
    assert load.input_tps == pytest.approx(700 / 6)
    assert pinned.input_tps == 100.0


def test_output_throughput_is_per_request():
    load = ModelLoad()
    complete(load, 1, 120, 3.0, 9.0, 30)
    assert load.snapshot(9.0).output_tps == 5.0
    assert load.snapshot(9.0).max_output_tps == 5.0


def test_a_request_never_goes_back_and_a_second_of_one_id_replaces_the_first():
    request = LiveRequest(5, 0, 0.0)
    request.advance(State.OUTPUT, 1.0)
    request.advance(State.INPUT, 2.0)
    assert request.state is State.OUTPUT
    load = ModelLoad()
    first, second = LiveRequest(1, 0, 0.0), LiveRequest(2, 0, 0.0)
    load.begin("same", first, 0)
    load.begin("same", second, 0)
    load.end("same", first, 1.0, 0, complete=False)
    assert load.snapshot(1.0).num_running_queries == 1


@pytest.mark.parametrize(
    ("event", "before", "after"),
    [
        (b'data: {"usage":{"completion_tokens":9}}\n\n', 3, 9),
        (b'data: {"usage":{"completion_tokens":true},"output_tokens_so_far":4}\n\n', 3, 4),
        (b'data: {"response":{"usage":{"output_tokens":12}}}\n\n', 3, 12),
        (b'data: {"choices":[{"delta":{"content":"two words"}}]}\n\n', 3, 5),
        (b'data: {"delta":"one"}\n\n', 3, 4),
        (b"data: [1]\n\n", 3, 3),
        (b"data: nonsense\n\n", 3, 3),
    ],
)
def test_output_tokens(event, before, after):
    assert output_tokens(event, before) == after


# --- events ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([b"data: a\n", b"\n", b"\r\n", b": note\r\n", b"event: x\n", b"data: b\r\n"])), st.data()
)
def test_cutting_keeps_every_byte_whatever_the_pieces(parts, data):
    stream = b"".join(parts)
    cutter, events, at = EventCutter(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        events += cutter.feed(stream[at : at + size])
        at += size
    assert b"".join(events) + cutter.rest() == stream
    assert all(event.endswith((b"\n\n", b"\r\n\r\n")) for event in events)
    whole = EventCutter()
    assert (whole.feed(stream), whole.rest()) == (events, cutter.rest())


def test_an_event_without_end_is_given_up():
    cutter = EventCutter()
    assert cutter.feed(b"x" * MAX_EVENT_BYTES) == []
    with pytest.raises(EventTooLargeError):
        cutter.feed(b"x")


def test_an_event_in_pieces_of_one_byte_costs_time_in_proportion_to_its_bytes():
    def seconds(size):
        cutter = EventCutter()
        start = time.process_time()
        for _ in range(size):
            cutter.feed(b"x")
        assert cutter.feed(b"\n\n") == [b"x" * size + b"\n\n"]
        return time.process_time() - start

    few = min(seconds(20_000) for _ in range(3))
    assert seconds(400_000) < 20 * few * 5


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"stream":true,"a":"\xff"}', b"{", b"\xff"])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/v1/embeddings", b"/other"])
def test_a_body_that_is_no_json_is_400_whatever_is_wrong_with_it(body, path):
    if path != b"/v1/chat/completions" and body.endswith(b"}"):
        return  # passed on as it is
    with pytest.raises(Problem) as refused:
        check_body(b"POST", path, body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (b"data: response.created " + b"[" * 100_000 + b"\n\n", EventKind.OUTPUT),
        (b'data: {"type":"response.created\xff"}\n\n', EventKind.OUTPUT),
        (b"data: [DONE]\n\n", EventKind.DONE),
        (b": keep-alive\n\n", EventKind.OTHER),
        (b"data:\n\n", EventKind.OTHER),
        (b"event: response.created\ndata: {}\n\n", EventKind.OTHER),
        (b'data: {"type":"response.created"}\n\n', EventKind.OTHER),
        (b'data: {"text":"response.created"}\n\n', EventKind.OUTPUT),
        (b"data: response.created\n\n", EventKind.OUTPUT),
        (b'data: {"error":"x"}\r\n\r\n', EventKind.OUTPUT),
    ],
)
def test_kinds_of_events(event, kind):
    assert kind_of(event) is kind
