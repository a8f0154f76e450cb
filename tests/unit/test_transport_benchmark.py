"""The transport benchmark's arithmetic agrees with other implementations, and its verdicts follow their rules."""

import dataclasses
import io
import json
import pathlib

import msgspec
import pytest

from benchmarks.transport import command
from benchmarks.transport.distribution import classify, describe, percentile
from benchmarks.transport.environment import read_environment
from benchmarks.transport.generator import Generator
from benchmarks.transport.measure import Results, Run
from benchmarks.transport.preflight import preflight
from benchmarks.transport.progress import ProgressLine
from benchmarks.transport.report import report
from benchmarks.transport.samples import Cpu, Sample, aggregate, compare, summarise
from benchmarks.transport.settings import MAX_STREAMS, SettingsError, TransportSettings, matrix

DOCUMENT = json.loads((pathlib.Path(__file__).parents[1] / "vectors" / "transport-benchmark.json").read_text())
VECTORS = DOCUMENT["vectors"]
NAMES = {"raw-quic": "raw-quic", "http3-h3-quinn": "http3", "webtransport-h3-quinn": "webtransport"}


@pytest.mark.parametrize("vector", VECTORS["prng"], ids=lambda vector: vector["seed"])
def test_the_generator_draws_what_others_draw(vector):
    def draw(method, wanted, *arguments):
        generator = Generator(vector["seed"])
        return [getattr(generator, method)(*arguments) for _ in wanted] == wanted

    assert draw("u32", vector["u32"])
    assert draw("u64", [int(value) for value in vector["u64"]])
    assert draw("below", vector["index_below_10"], 10)


def test_a_draw_may_straddle_two_blocks():
    vector = VECTORS["prng_straddle"]
    generator = Generator(vector["seed"])
    for _ in range(vector["skip_u32"]):
        generator.u32()
    assert generator.u64() == int(vector["next_u64"])
    assert generator.u32() == vector["then_u32"]


def test_an_index_in_the_unfair_rest_takes_a_second_draw_into_account():
    class Scripted(Generator):
        def __init__(self, *words):
            super().__init__(0)
            self.words = iter(words)

        def u32(self):
            return next(self.words)

    bound = 3 << 30
    assert Scripted(3).below(bound) == 2  # 3 * bound leaves 2**30: at the limit and not above it, no second draw
    assert Scripted(1, 0).below(bound) == 0  # leaves 3 * 2**30, above it
    assert Scripted(1, 0xFFFFFFFF).below(bound) == 1


@pytest.mark.parametrize("vector", VECTORS["percentiles"], ids=str)
def test_percentiles_are_measured_values(vector):
    values = vector["sorted_values"]
    if isinstance(values, dict):
        first, last = values["range"]
        values = list(range(first, last + 1))
    for share, wanted in vector["upper_rank"].items():
        assert percentile(values, float(share)) == wanted


@pytest.mark.parametrize("vector", VECTORS["distributions"], ids=lambda vector: str(vector["values"]))
def test_distributions_and_their_verdicts_agree_with_others(vector):
    figures = describe(list(reversed(vector["values"])), vector["bootstrap_seed"])
    assert msgspec.to_builtins(figures) == vector["stats"]
    assert classify(figures, vector["noise_threshold_cv"]) == vector["classification"]


def test_values_around_nothing_have_no_variation_to_go_by():
    figures = describe([-1.0, 1.0], 1)
    assert figures.coefficient_of_variation is None
    assert classify(figures, 10.0) == "inconclusive"


@pytest.mark.parametrize("vector", VECTORS["transport_order"], ids=lambda vector: vector["trial_index_zero_based"])
def test_the_drawn_order_is_that_of_others(vector, monkeypatch):
    monkeypatch.setattr("benchmarks.transport.settings.BUILT", tuple(NAMES.values()))
    settings = TransportSettings(randomize_order=True, transports=tuple(NAMES.values()))
    trial = vector["trial_index_zero_based"]
    assert settings.order(trial, warmup=False) == [NAMES[name] for name in vector["measured"]]
    assert settings.order(trial, warmup=True) == [NAMES[name] for name in vector["warmup"]]
    assert dataclasses.replace(settings, randomize_order=False).order(trial, warmup=False) == list(NAMES.values())


def test_defaults_and_rows_of_the_matrix_are_those_of_the_specification():
    defaults = DOCUMENT["transport_benchmark"]["defaults"]
    ours = TransportSettings()
    for name, value in defaults.items():
        if hasattr(ours, name):
            assert getattr(ours, name) == value, name
    rows = matrix(TransportSettings(server_process=True, requests=7), 1.0)
    for row in DOCUMENT["transport_benchmark"]["recommended_matrix"]:
        shape = {name: getattr(rows[row["id"]], name) for name in row if name != "id"}
        assert shape == {name: value for name, value in row.items() if name != "id"}
    assert set(rows) == {row["id"] for row in DOCUMENT["transport_benchmark"]["recommended_matrix"]}
    assert all(row.server_process for row in rows.values())
    assert matrix(ours, 0.0001)["serial-small"].requests == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, 0, "at least 1") for name in DOCUMENT["transport_benchmark"]["constraints"]["positive"]),
        *((name, -1, "negative") for name in DOCUMENT["transport_benchmark"]["constraints"]["zero_allowed"]),
        ("noise_threshold_cv", float("nan"), "finite"),
        ("min_effect_size_percent", -0.1, "negative"),
        ("min_effect_size_percent", float("inf"), "finite"),
        ("reliability_mode", "lenient", "smoke, controlled, strict"),
        ("quic_send_fairness", False, "in turn"),
        ("transports", ("http3",), "not built yet; there is raw-quic"),
        ("transports", ("carrier-pigeon",), "raw-quic, http3, webtransport"),
        ("transports", (), "at least once"),
        ("concurrency", MAX_STREAMS // 2 + 1, "8192 for each connection"),
        ("idle_streams", MAX_STREAMS // 2 + 1, "8192"),
    ],
)
def test_values_that_make_no_benchmark_are_refused_by_name(name, value, message):
    with pytest.raises(SettingsError, match=message) as caught:
        TransportSettings(**{name: value})
    assert caught.value.parameter in (name, name.removesuffix("s"))


def sample(index, *, ok=True, us=100.0, body=True):
    error = None if ok else "status 503"
    return Sample(index, 0, ok, 200 if ok else 503, 1024, 1024, us, us + 1 if body else None, us + 2, error)


def run_of(transport, throughput, trial):
    samples = [sample(0, us=trial * 10.0)]
    return summarise(transport, trial, samples, 1 / throughput, Cpu(None, None, 0.5))


def test_a_summary_counts_bodies_and_times_of_successes_only():
    samples = [sample(index, us=float(index)) for index in range(101)] + [sample(200, ok=False, us=1e9)]
    summary = summarise("raw-quic", 0, samples, 2.0, Cpu(1.0, 2.0, 3.0))
    assert (summary.request_count, summary.success_count, summary.failure_count) == (102, 101, 1)
    assert summary.throughput_rps == 50.5
    assert summary.goodput_mib_s == pytest.approx(101 * 2048 / 2 / 2**20)
    assert summary.measured_duration_ms == 2_000
    assert summary.response_headers_us is not None
    assert msgspec.structs.astuple(summary.response_headers_us) == (0, 50, 90, 95, 99, 100)
    assert summary.first_body_us is not None
    assert summary.first_body_us.p50 == 51
    assert summary.latency_us is not None
    assert summary.latency_us.max == 102


def test_an_empty_body_has_no_first_byte_and_a_failed_run_no_times():
    summary = summarise("raw-quic", 0, [sample(0, body=False)], 1.0, Cpu(None, None, 0.1))
    assert summary.first_body_us is None
    assert summarise("raw-quic", 0, [sample(0, ok=False)], 1.0, Cpu(None, None, 0.1)).latency_us is None


def test_each_figure_of_an_aggregate_has_a_seed_of_its_own():
    settings = TransportSettings()
    runs = [run_of("http3", throughput, trial) for trial, throughput in enumerate((100.0, 101.0, 99.0))]
    (one,) = aggregate(runs, settings)
    assert one.throughput_rps == describe([run.throughput_rps for run in runs], 17)
    assert one.goodput_mib_s == describe([run.goodput_mib_s for run in runs], 18)
    assert one.latency_p95_us == describe([2.0, 12.0, 22.0], 19)
    assert one.response_headers_p95_us == describe([0.0, 10.0, 20.0], 20)
    assert one.first_body_p95_us == describe([1.0, 11.0, 21.0], 21)


@pytest.mark.parametrize(
    ("others", "overlap", "meaningful"),
    [
        ((80.0, 81.0, 79.0), False, True),
        ((99.0, 100.0, 101.0), True, False),
        ((80.0, 120.0, 100.0), True, False),  # noisy
        ((99.4, 99.3, 99.2), False, False),  # below the smallest effect
        ((80.0,), None, False),  # one trial
    ],
)
def test_a_difference_is_called_meaningful_only_by_the_rule(others, overlap, meaningful):
    settings = TransportSettings(min_effect_size_percent=1.0, noise_threshold_cv=0.02)
    base = (100.0, 100.0001, 100.0002) if others[0] == 99.4 else (100.0, 101.0, 99.0)
    runs = [run_of("raw-quic", throughput, trial) for trial, throughput in enumerate(base)]
    runs += [run_of("webtransport", throughput, trial) for trial, throughput in enumerate(others)]
    (verdict,) = compare(aggregate(runs, settings), settings)
    mean = sum(others) / len(others)
    assert verdict.throughput_delta_percent == pytest.approx(mean - sum(base) / 3, rel=1e-3)
    assert (verdict.intervals_overlap, verdict.meaningful_difference) == (overlap, meaningful)


def test_nothing_is_compared_without_raw_quic_and_nothing_divided_by_a_run_of_failures():
    settings = TransportSettings()
    assert compare(aggregate([run_of("http3", 5.0, 0)], settings), settings) == []
    failed = summarise("raw-quic", 0, [sample(0, ok=False)], 1.0, Cpu(None, None, 0.1))
    (verdict,) = compare(aggregate([failed, run_of("http3", 5.0, 0)], settings), settings)
    assert verdict.throughput_delta_percent is None
    assert not verdict.meaningful_difference


def facts(**changes):
    known = {
        "runtime_profile": "release, assertions on",
        "cpu_governor": "performance",
        "address_space_randomisation": 0,
        "nmi_watchdog": 0,
        "load_average": [1.5, 9.0, 9.0],
        "usable_cpus": 2,
    }
    return msgspec.structs.replace(read_environment(), **{**known, **changes})


def test_a_machine_that_is_fit_passes_in_strict_mode():
    assert {check.status for check in preflight(facts(), "strict")} == {"ok"}


@pytest.mark.parametrize(
    ("fact", "value", "name"),
    [
        ("runtime_profile", "debug, assertions on", "optimised build"),
        ("cpu_governor", "powersave", "CPU governor"),
        ("address_space_randomisation", 2, "address-space randomisation"),
        ("nmi_watchdog", 1, "NMI watchdog"),
        ("load_average", [1.51, 0.0, 0.0], "load of one minute"),
    ],
)
def test_what_is_unfit_is_a_warning_and_in_strict_mode_a_failure(fact, value, name):
    for mode, status in (("smoke", "warning"), ("controlled", "warning"), ("strict", "failure")):
        checks = {check.name: check.status for check in preflight(facts(**{fact: value}), mode)}
        assert checks.pop(name) == status
        assert set(checks.values()) == {"ok"}


def test_facts_that_cannot_be_read_are_unknown_and_never_a_failure():
    nothing = dict.fromkeys(("cpu_governor", "address_space_randomisation", "nmi_watchdog", "load_average"))
    statuses = [check.status for check in preflight(facts(**nothing), "strict")]
    assert statuses == ["ok", "unknown", "unknown", "unknown", "unknown"]


def test_strict_mode_writes_its_metadata_and_refuses_to_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "read_environment", lambda: facts(nmi_watchdog=1))
    with pytest.raises(SystemExit, match="not fit for strict mode"):
        command.run(["--reliability-mode", "strict", "--output-dir", str(tmp_path)])
    document = json.loads((tmp_path / "run-metadata.json").read_text())
    assert document["schema_version"] == 3
    assert {"name": "NMI watchdog", "status": "failure"}.items() <= document["preflight_report"][3].items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-metadata.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--transport", "http3"], "--transport http3 is not built yet; there is raw-quic"),
        (["--requests", "0"], "--requests must be at least 1"),
        (["--scale", "0"], "--scale must be above 0"),
        (["--no-quic-send-fairness"], "--quic-send-fairness cannot be off"),
    ],
)
def test_wrong_options_end_with_one_line_and_status_2(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        command.run([*arguments, "--output-dir", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_tells_failures_trials_and_comparisons():
    settings = TransportSettings(trials=2)
    samples = [sample(0), sample(1, ok=False), sample(2, ok=False)]
    runs = [
        Run(summarise(name, trial, samples, 1.0, Cpu(0.3, None, 0.3)), samples)
        for name in ("raw-quic", "http3")
        for trial in (0, 1)
    ]
    aggregates = aggregate([run.summary for run in runs], settings)
    text = report(Results(runs, [], aggregates, compare(aggregates, settings)), settings)
    assert "- 8 times: status 503" in text
    assert "| raw-quic | reliable | 1 | 1 to 1 | 0.0% |" in text
    assert "http3 beside raw-quic: +0.0 % requests per second, no meaningful difference." in text
    assert "| raw-quic | 2 | 1 | 2 | 1 | 0.0 | 0.10 / 0.10 / 0.10 | 0.10 | 0.10 | 100000.0 / - / 100000.0 |" in text


def test_progress_is_rewritten_on_a_terminal_and_rare_elsewhere(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, log = Terminal(), io.StringIO()
    clock = iter([0.0, 0.0, 1.0, 1.0, 6.0, 7.0])
    monkeypatch.setattr("benchmarks.transport.progress.time.monotonic", lambda: next(clock))
    lines = [ProgressLine(terminal), ProgressLine(log)]
    for line in lines:
        line("run", 1, 9)
    for line in reversed(lines):
        line("run", 2, 9)
        line.end()
    assert terminal.getvalue() == "\r\x1b[Krun: 1 of 9\r\x1b[Krun: 2 of 9\r\x1b[K"
    assert log.getvalue() == "run: 2 of 9\n"
