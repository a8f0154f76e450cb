"""The growth benchmark's options, the medians of its trials, its tables and its plot; nothing is measured here."""

import pytest

from benchmarks.fleet.capacity import Capacity
from benchmarks.fleet.report import Row
from benchmarks.fleet.system import FleetError
from benchmarks.growth import command, tunnels, workers
from benchmarks.growth.panels import PANELS, Growth, Measured, medians
from benchmarks.growth.plot import draw, follow_colour_scheme, size_text
from benchmarks.growth.tables import BEGIN, END, replace_in, tables
from benchmarks.growth.time_budget import OutOfTimeError, TimeBudget
from benchmarks.growth.tunnels import needs, settings_of
from benchmarks.transport.samples import Cpu, Sample, summarise

PLENTY = Capacity(descriptors=1 << 20, memory_bytes=1 << 40)


def nothing(*_):
    pass


def measured(panel, x, us, note=None):
    figures = dict.fromkeys(PANELS[panel].figures, 1.0) | {"us": us}
    return Measured(panel=panel, x=x, figures=figures, note=note)


def growth_of(*found, **ended):
    return Growth(points=medians(found), ended=ended, conditions="As written, one trial.")


ALL = [
    measured(panel, x, us)
    for panel, xs in command._SIZES.items()
    for x in xs
    for us in (30.0 + x / 100, 40.0 + x / 100, 90.0 + x / 100)
]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--panels", "streams,planets"], "there is no panel 'planets'; there are streams, tunnels, workers, bytes"),
        (["--streams", "16,many"], "expected numbers"),
        (["--workers", "0,10"], "each must be at least 1"),
        (["--trials", "0"], "must be at least 1"),
        (["--limit-s", "0"], "must be greater than 0"),
        (["--seconds", "inf"], "must be greater than 0"),
        (["--panels", "streams", "--streams", "9000"], "at most 8192 for each connection"),
    ],
)
def test_a_wrong_option_is_refused_with_its_reason(words, text, capsys):
    with pytest.raises(SystemExit) as refused:
        command.run(words)
    assert refused.value.code == 2
    assert text in capsys.readouterr().err


def test_the_help_explains_each_panel(capsys):
    with pytest.raises(SystemExit):
        command.run(["--help"])
    printed = capsys.readouterr().out
    for panel in PANELS:
        assert f"\n  {panel} " in printed
        assert f"--{panel} N,N" in printed


@pytest.mark.parametrize(
    ("capacity", "words", "reason"),
    [
        (Capacity(descriptors=100, memory_bytes=None), ["--panels", "streams"], "16 streams need 128 descriptors"),
        (Capacity(descriptors=4_096, memory_bytes=400 << 20), ["--panels", "tunnels"], "1,000 tunnels need 494 MiB"),
        (Capacity(descriptors=4_096, memory_bytes=1 << 28), ["--panels", "bytes"], "16,777,216 bytes need 319 MiB"),
        (Capacity(descriptors=100, memory_bytes=None), ["--panels", "workers"], "10 workers need 148 descriptors"),
    ],
)
def test_points_that_do_not_fit_are_refused_before_anything_is_started(monkeypatch, capacity, words, reason):
    monkeypatch.setattr(Capacity, "read", classmethod(lambda _: capacity))
    with pytest.raises(SystemExit, match=reason):
        command.run(words)


def test_the_points_of_tunnels_have_the_same_number_of_running_requests():
    settings = [settings_of("tunnels", x, 4_000) for x in command._SIZES["tunnels"]]
    assert {one.concurrency for one in settings} == {1_000}
    assert [one.quic_connections for one in settings] == list(command._SIZES["tunnels"])


def test_streams_all_run_at_once_and_are_all_used_more_than_once():
    for x in command._SIZES["streams"]:
        settings = settings_of("streams", x, 100)
        assert (settings.concurrency, settings.quic_connections) == (x, 1)
        assert settings.requests >= 2 * x


def test_the_bodies_of_a_point_are_bounded_in_number_and_in_bytes():
    for x in command._SIZES["bytes"]:
        settings = settings_of("bytes", x, 4_000)
        assert settings.request_body_bytes == x
        assert 16 <= settings.requests <= 4_000
        assert settings.requests * x <= 256 << 20


def test_a_million_bytes_need_more_memory_than_a_few():
    assert needs(settings_of("bytes", 1 << 20, 10))[1] > needs(settings_of("bytes", 400, 10))[1]


def test_trials_give_medians_and_their_spread_in_order_of_size():
    found = medians([measured("streams", x, us) for us in (5.0, 1.0, 3.0) for x in (64, 16)])
    assert list(found) == ["streams"]
    first, second = found["streams"]
    assert (first.x, second.x) == (16, 64)
    assert (first.figures["us"], first.lowest, first.highest, first.trials) == (3.0, 1.0, 5.0, 3)


def test_a_plot_has_all_panels_and_equal_figures_give_equal_files(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw(growth_of(*ALL), tmp_path / name)
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    for panel in PANELS.values():
        for text in (panel.title, panel.x_label, panel.y_label):
            assert f"<!-- {text} -->" in drawn
    assert "<!-- 16 Mi -->" in drawn
    assert "<!-- 4,096 -->" in drawn


def test_a_plot_of_some_panels_and_of_costs_below_nothing_can_be_drawn(tmp_path):
    draw(
        growth_of(measured("workers", 10, -3.0), measured("workers", 100, 400.0, "the simulator is the limit")),
        tmp_path / "a.svg",
    )
    assert "<!-- Workers -->" in (tmp_path / "a.svg").read_text()
    with pytest.raises(ValueError, match="no points"):
        draw(growth_of(), tmp_path / "b.svg")


def test_in_dark_mode_no_colour_of_the_light_one_is_left(tmp_path):
    draw(growth_of(*ALL), tmp_path / "a.svg")
    head, _, body = (tmp_path / "a.svg").read_text().partition("</style>")
    assert "@media (prefers-color-scheme: dark)" in head
    used = {(kind, colour) for kind in ("fill", "stroke") for colour in _colours(body, kind)}
    for kind, colour in used:
        assert f'[style*="{kind}: {colour}"]' in head


def _colours(body, kind):
    return {part[:7] for part in body.split(f"{kind}: #")[1:] for part in [f"#{part}"]}


def test_the_style_is_put_once_into_the_drawing():
    assert follow_colour_scheme('<svg a="1"><svg/></svg>').count("<style>") == 1


def test_sizes_are_told_in_binary_units_where_they_are_such():
    assert [size_text(x) for x in (400, 1_000, 4_096, 1 << 20, 16 << 20)] == ["400", "1,000", "4 Ki", "1 Mi", "16 Mi"]


def test_tables_have_each_panel_its_spread_and_what_ended_it():
    text = tables(growth_of(*ALL, workers="10000 workers need 20128 descriptors"))
    assert "| requests running at once on one tunnel | 16 | 64 | 256 | 1,024 | 4,096 |" in text
    assert "| bytes of a request body | 400 | 4 Ki | 64 Ki | 1 Mi | 16 Mi |" in text
    assert "| lowest and highest | 30.2-90.2 |" in text
    assert "No more points of workers: 10000 workers need 20128 descriptors." in text
    assert "lowest" not in tables(growth_of(measured("streams", 16, 30.0)))


def test_a_page_gets_the_tables_between_its_two_lines_and_keeps_the_rest(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    for _ in range(2):
        replace_in(page, "new\n")
    assert page.read_text() == f"before\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    page.write_text(f"{BEGIN} without an end")
    with pytest.raises(ValueError, match="does not have the lines"):
        replace_in(page, "new\n")


def test_figures_of_an_earlier_run_are_drawn_again_into_the_documentation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_measure", lambda _: growth_of(*ALL))
    command.run(["--out", str(tmp_path / "out")])
    (tmp_path / "docs" / "images").mkdir(parents=True)
    page = tmp_path / "docs" / "performance.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    figures = str(tmp_path / "out" / "growth.json")
    command.run(["--figures", figures, "--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")])
    text = (tmp_path / "out" / "growth.md").read_text()
    assert text in page.read_text()
    assert capsys.readouterr().out == text * 2
    assert (tmp_path / "docs/images/growth.svg").read_bytes() == (tmp_path / "out/growth.svg").read_bytes()


@pytest.mark.parametrize("content", [None, "{}"], ids=["absent", "other"])
def test_figures_that_cannot_be_read_end_with_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "growth.json").write_text(content)
    with pytest.raises(SystemExit, match=r"not drawn: .*growth\.json"):
        command.run(["--figures", str(tmp_path / "growth.json"), "--out", str(tmp_path)])


def test_a_page_without_its_lines_is_told_after_the_figures_are_safe(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_measure", lambda _: growth_of(*ALL))
    (tmp_path / "performance.md").write_text("nothing")
    with pytest.raises(SystemExit, match="not written"):
        command.run(["--out", str(tmp_path / "out"), "--docs", str(tmp_path)])
    assert (tmp_path / "out" / "growth.json").exists()


def row(number, **changes):
    values = {"cpu_s_per_s": 0.003 + number * 0.0004, "simulator_s_per_s": 0.1, "resident_bytes": number << 17}
    return Row(**{"router": "router", "workers": number, "idle_cpus": 0.5, "started_s": 1.0, **values, **changes})


def workers_of(monkeypatch, measure, numbers=(10, 100, 300), capacity=PLENTY, limit_s=1_000.0):
    monkeypatch.setattr(Capacity, "read", classmethod(lambda _: capacity))
    monkeypatch.setattr(workers, "measure", measure)
    return workers.measure_workers(numbers, 1.0, 0, TimeBudget(limit_s), nothing)


def test_workers_cost_what_the_router_uses_beyond_its_own(monkeypatch):
    found, reason = workers_of(monkeypatch, lambda _name, _command, number, _times: row(number))
    assert reason is None
    assert [one.x for one in found] == [10, 100, 300]
    for one in found:
        assert one.figures["us"] == pytest.approx(400)
        assert one.figures["kib"] == pytest.approx(128)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"simulator_s_per_s": 0.9}, "100 workers: the simulator is the limit (90% of a core)"),
        ({"cpu_s_per_s": 0.99}, "100 workers: the router's core is the limit (99%)"),
    ],
)
def test_a_core_that_is_full_is_the_last_point_and_marked(monkeypatch, changes, reason):
    found, told = workers_of(
        monkeypatch, lambda _name, _command, number, _times: row(number, **(changes if number == 100 else {}))
    )
    assert told == reason
    assert [(one.x, one.note is not None) for one in found] == [(10, False), (100, True)]


def test_workers_that_do_not_fit_or_do_not_arrive_are_the_end_and_not_an_error(monkeypatch):
    def measure(_name, _command, number, _times):
        if number == 300:
            raise FleetError("7 are routable, 12 handshakes failed; not within 45 s\nits log")
        return row(number)

    found, reason = workers_of(monkeypatch, measure)
    assert [one.x for one in found] == [10, 100]
    assert reason == "300 workers: 7 are routable, 12 handshakes failed; not within 45 s"
    found, reason = workers_of(monkeypatch, measure, capacity=Capacity(descriptors=200, memory_bytes=None))
    assert [one.x for one in found] == [10]
    assert reason is not None
    assert reason.startswith("100 workers need 328 descriptors")


def test_a_router_that_does_not_start_is_an_error(monkeypatch):
    def measure(*_):
        raise FleetError("the router has ended")

    with pytest.raises(FleetError):
        workers_of(monkeypatch, measure)


def test_workers_for_which_the_time_is_too_short_are_not_started(monkeypatch):
    found, reason = workers_of(
        monkeypatch, lambda _name, _command, number, _times: row(number), numbers=(10, 100_000), limit_s=100.0
    )
    assert [one.x for one in found] == [10]
    assert reason == "from 100,000 on the time of the trial was used up (--limit-s)"


def test_a_budget_ends():
    assert 0 < TimeBudget(5.0).left_s(1.0) <= 5.0
    with pytest.raises(OutOfTimeError):
        TimeBudget(5.0).left_s(6.0)


def summary(requests, failed=0):
    samples = [Sample(i, 0, i >= failed, 200, 1_024, 2, 1.0, 1.0, 2_000.0, None) for i in range(requests)]
    return summarise("raw-quic", 0, samples, 2.0, Cpu(requests * 50e-6, 1.0, 1.0))


def tunnels_of(monkeypatch, panel, sizes, result, limit_s=1_000.0):
    async def measure(*_):
        return result

    monkeypatch.setattr(tunnels, "_measure", measure)
    return tunnels.measure_tunnels(panel, sizes, 10, 0, TimeBudget(limit_s), nothing)


def test_costs_are_those_of_the_routers_side_per_request_and_per_kib(monkeypatch):
    (one,), reason = tunnels_of(monkeypatch, "bytes", [4_096], summary(100))
    assert reason is None
    assert one.figures == pytest.approx({"us": 50.0, "us_per_kib": 12.5, "mib_per_s": 50 * 4_096 / (1 << 20)})
    (one,), _ = tunnels_of(monkeypatch, "streams", [16], summary(100))
    assert one.figures == pytest.approx({"us": 50.0, "per_s": 50.0, "p99_ms": 2.0})


def test_a_failed_request_is_an_error_and_no_figure(monkeypatch):
    with pytest.raises(RuntimeError, match="streams 16: 3 of 100 requests failed"):
        tunnels_of(monkeypatch, "streams", [16], summary(100, failed=3))


def test_points_for_which_the_time_is_too_short_are_told():
    assert tunnels.measure_tunnels("streams", [16, 64], 10, 0, TimeBudget(20.0), nothing) == (
        [],
        "from 16 on the time of the trial was used up (--limit-s)",
    )


def test_a_run_in_which_nothing_could_be_measured_is_an_error():
    with pytest.raises(SystemExit, match="not measured: streams: from 16 on the time of the trial was used up"):
        command.run(["--panels", "streams", "--limit-s", "1"])
