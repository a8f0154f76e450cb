"""The tables of `top`: sorting, filter, cursor, columns in view."""

from typing import Any

import pytest

from router.operators.live_document import Cluster, Flow, Request, Target, Worker
from router.top.ordering import Order, OrderError, filtered, order_called, ordered
from router.top.printable import cells
from router.top.spans import Role, text_of
from router.top.table_view import TableView
from router.top.tables import CLUSTERS, FLOWS, REQUESTS, TABLES, TARGETS, WORKERS, Table, table_called
from support.live_documents import filled, live


def worker(name: str, **given: Any) -> Worker:
    return filled(
        Worker, **{"inference_server_id": name, "state": "healthy", "healthy_in": 1, "models_total": 0, **given}
    )  # type: ignore[no-any-return]


def request(number: int, **given: Any) -> Request:
    return filled(Request, **{"number": number, "process": "r", "at": 1000.0 + number, "status": 200, **given})  # type: ignore[no-any-return]


def names(rows: list[Any]) -> list[str]:
    return [row.inference_server_id for row in rows]


def cell(table: Table, name: str, row: object) -> str:
    column = table.column(name)
    assert column is not None
    return column.text(row)


def role(table: Table, name: str, row: object) -> Role:
    column = table.column(name)
    assert column is not None
    return column.role(row)


# Sorting ----------------------------------------------------------------------------------------------------------------


def test_names_are_sorted_as_people_count() -> None:
    rows = [worker("w10"), worker("W2"), worker("w1"), worker("a")]
    assert names(ordered(WORKERS, rows, Order("worker", descending=False))) == ["a", "w1", "W2", "w10"]
    assert names(ordered(WORKERS, rows, Order("worker", descending=True))) == ["w10", "W2", "w1", "a"]


def test_unknown_values_are_last_either_way_and_equal_ones_by_name() -> None:
    rows = [worker("w3", rtt_ms=None), worker("w2", rtt_ms=5.0), worker("w1", rtt_ms=5.0), worker("w4", rtt_ms=9.0)]
    assert names(ordered(WORKERS, rows, Order("rtt", descending=False))) == ["w1", "w2", "w4", "w3"]
    assert names(ordered(WORKERS, rows, Order("rtt", descending=True))) == ["w4", "w1", "w2", "w3"]


def test_the_next_column_begins_with_the_largest_number_and_goes_round() -> None:
    order = Order.of(WORKERS)
    assert order == Order("worker", descending=False)
    assert order.next(WORKERS, 1) == Order("state", descending=False)
    assert order.next(WORKERS, 2) == Order("rtt", descending=True)
    assert order.next(WORKERS, -1).column == WORKERS.columns[-1].name
    assert order.next(WORKERS, 2).reversed() == Order("rtt", descending=False)


def test_an_order_is_named_by_its_column() -> None:
    assert order_called(WORKERS, "-queue") == Order("queue", descending=True)
    assert order_called(WORKERS, "worker") == Order("worker", descending=False)
    with pytest.raises(OrderError, match="table `flows` has no column `queue`; it has model, worker"):
        order_called(FLOWS, "-queue")


def test_a_column_that_is_none_changes_nothing() -> None:
    rows = [worker("b"), worker("a")]
    assert ordered(WORKERS, rows, Order("nothing", descending=False)) == rows


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_can_be_sorted_by_every_column_and_has_names_of_one_word(table: Table) -> None:
    rows = {
        "workers": [worker("w1", cluster_id="c"), worker("w2", rtt_ms=1.0, models=["m"], models_total=3)],
        "clusters": [filled(Cluster, cluster_id="a"), filled(Cluster, cluster_id="b", rtt_ms=1.0, routing_key="k")],
        "targets": [filled(Target, model="a"), filled(Target, model="b", routing_key="k")],
        "requests": [request(1), request(2, routing_key="k", first_token_ms=3.0)],
        "flows": [filled(Flow, model="a"), filled(Flow, model="b", inference_server_id="w")],
    }[table.name]
    found = [column.name for column in table.columns]
    assert len(set(found)) == len(found)
    for column in table.columns:
        assert column.name.isalpha()
        for descending in (False, True):
            assert len(ordered(table, rows, Order(column.name, descending))) == 2


# Filter -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ["gpu-1", "gpu-2", "cpu-1"]),
        ("GPU", ["gpu-1", "gpu-2"]),
        ("gpu silent", ["gpu-2"]),
        ("state:silent", ["gpu-2"]),
        ("state:gpu", []),
        ("-silent", ["gpu-1", "cpu-1"]),
        ("-state:healthy gpu", ["gpu-2"]),
        ("llama:8b", ["cpu-1"]),
        ("nothing:here", []),
        ("-", ["gpu-1", "gpu-2", "cpu-1"]),
        ("\\x1b", []),
    ],
)
def test_a_filter_is_words_that_a_row_has_or_has_not(words: str, expected: list[str]) -> None:
    rows = [
        worker("gpu-1"),
        worker("gpu-2", state="silent", silent_s=3.0),
        worker("cpu-1", models=["llama:8b"], models_total=1),
    ]
    assert names(filtered(WORKERS, rows, words)) == expected


# Cells ------------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_silent_says_since_when_and_in_how_many_processes() -> None:
    assert cell(WORKERS, "state", worker("w", state="silent", silent_s=65.0)) == "silent 1m05s"
    assert cell(WORKERS, "state", worker("w", healthy_in=1, registered_in=2)) == "healthy 1/2"
    assert cell(WORKERS, "state", worker("w", healthy_in=2, registered_in=2)) == "healthy"
    assert role(WORKERS, "state", worker("w", state="inactive")) is Role.WARNING
    assert role(WORKERS, "state", worker("w", state="disconnected")) is Role.BAD
    assert role(WORKERS, "refused", worker("w", refusals=1)) is Role.BAD
    assert role(WORKERS, "refused", worker("w")) is Role.PLAIN
    assert cell(WORKERS, "models", worker("w", models=["a", "b"], models_total=5)) == "a, b, …"
    assert cell(WORKERS, "kv", worker("w", kv_used_tokens=1, kv_capacity_tokens=4)) == "25%"
    assert cell(WORKERS, "kv", worker("w")) == "-"


def test_a_request_says_how_it_ended_and_why() -> None:
    assert cell(REQUESTS, "end", request(1, end="refused", reason="missing x-model")) == "refused: missing x-model"
    assert cell(REQUESTS, "end", request(1, end="complete")) == "complete"
    assert cell(REQUESTS, "status", request(1, status=0)) == "-"
    roles = [role(REQUESTS, "status", request(1, **given)) for given in _ENDS]
    assert roles == [Role.GOOD, Role.WARNING, Role.WARNING, Role.BAD, Role.BAD]


_ENDS: list[dict[str, Any]] = [
    {"status": 200, "end": "complete"},
    {"status": 404, "end": "refused"},
    {"status": 0, "end": "client_gone"},
    {"status": 503, "end": "refused"},
    {"status": 200, "end": "truncated"},
]


def test_targets_and_clusters_say_how_many_of_how_many() -> None:
    for workers, expected in ((2, Role.PLAIN), (1, Role.WARNING), (0, Role.BAD)):
        target = filled(Target, model="m", workers=workers, registered=2)
        cluster = filled(Cluster, cluster_id="c", routable=workers, workers=2)
        assert (cell(TARGETS, "workers", target), role(TARGETS, "workers", target)) == (f"{workers}/2", expected)
        assert (cell(CLUSTERS, "routable", cluster), role(CLUSTERS, "routable", cluster)) == (f"{workers}/2", expected)
    assert cell(FLOWS, "worker", filled(Flow, model="m", inference_server_id="")) == "(waiting)"


def test_tables_have_names() -> None:
    assert table_called("requests") is REQUESTS
    assert table_called("none") is None


# On a screen ------------------------------------------------------------------------------------------------------------


def view_of(count: int, words: str = "", **given: Any) -> TableView:
    view = TableView(WORKERS)
    view.update(live(workers=[worker(f"w{number}", **given) for number in range(count)]), words)
    return view


def shown(view: TableView, width: int = 80, height: int = 5) -> list[str]:
    return [text_of(line) for line in view.lines(width, height)]


def test_the_cursor_stays_in_view_and_within_the_rows() -> None:
    view = view_of(20)
    assert shown(view)[1].startswith("w0 ")
    view.move(6)
    assert [line.split()[0] for line in shown(view)[1:]] == ["w3", "w4", "w5", "w6"]
    view.move(-2)
    assert [line.split()[0] for line in shown(view)[1:]] == ["w3", "w4", "w5", "w6"]
    view.move(1000)
    assert shown(view)[-1].startswith("w19")
    view.move(-1000)
    assert (view.cursor, names([view.chosen])) == (0, ["w0"])
    cursors = [line for line in view.lines(80, 5)[1:] if line[0].role is Role.CURSOR]
    assert len(cursors) == 1


def test_every_line_is_as_wide_as_the_terminal() -> None:
    view = view_of(3, cluster_id="模型" * 30)
    for width in (40, 79, 80, 200):
        assert {sum(cells(span.text) for span in line) for line in view.lines(width, 5)} == {width}


def test_the_cursor_stays_with_its_row_wherever_that_goes() -> None:
    view = TableView(REQUESTS)
    view.update(live(requests=[request(2), request(1)]), "")
    assert [row.number for row in view.rows] == [2, 1]
    view.move(1)
    view.update(live(requests=[request(4), request(3), request(2), request(1)]), "")
    assert view.chosen is not None
    assert (view.chosen.number, view.cursor) == (1, 3)
    view.update(live(requests=[request(4), request(3)]), "")
    assert (view.chosen.number, view.cursor) == (3, 1)
    view.update(live(), "")
    assert view.chosen is None


def test_at_the_first_row_the_cursor_follows_what_is_newest() -> None:
    view = TableView(REQUESTS)
    view.update(live(requests=[request(1)]), "")
    view.update(live(requests=[request(2), request(1)]), "")
    assert view.chosen is not None
    assert view.chosen.number == 2


def test_other_columns_come_into_view_and_the_first_one_stays() -> None:
    view = view_of(1)
    header = shown(view)[0]
    assert header.split()[:3] == ["Worker▲", "State", "RTT"]
    assert header.endswith("▸")
    view.show_columns(3)
    header = shown(view)[0]
    assert header.split()[:3] == ["Worker▲", "Run", "Tok/s"]
    assert "◂" in header
    view.show_columns(100)
    assert shown(view)[0].split() == ["Worker▲", "Address", "◂"]
    view.show_columns(-100)
    assert "State" in shown(view)[0]


def test_the_column_that_rows_are_sorted_by_comes_into_view() -> None:
    view = view_of(3)
    view.move(2)
    view.sort(Order("report", descending=True))
    assert "Report▼" in shown(view)[0]
    assert view.cursor == 0
    view.sort(Order("state", descending=False))
    assert "State▲" in shown(view)[0]
    view.show_columns(5)
    assert "State▲" not in shown(view)[0]


def test_a_column_of_names_gets_the_space_that_is_left() -> None:
    view = view_of(1, cluster_id="c" * 100)
    view.show_columns(14)
    line = shown(view)[1]
    assert line.endswith("…") or "c…" in line
    assert len(line) <= 80


def test_clicks_find_columns_and_rows() -> None:
    view = view_of(3)
    shown(view)
    first = view.column_at(0, 80)
    assert first is not None
    assert first.name == "worker"
    second = view.column_at(10, 80)
    assert second is not None
    assert second.name == "state"
    assert view.column_at(79, 80) is None
    assert view.move_to_line(2)
    assert view.cursor == 2
    assert not view.move_to_line(3)


def test_an_empty_table_says_why() -> None:
    assert shown(view_of(0)) == [shown(view_of(0))[0], "none"]
    assert shown(view_of(3, "nobody"))[1] == "none of 3 matches the filter"
    assert len(shown(view_of(0), height=1)) == 1
