"""What each process of a router is started with, and which options exclude more than one process."""

import pytest

from router.config.cli import COMMAND_LINE, UsageError, parse
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.supervisor.lifecycle import number_of_processes
from router.supervisor.plan import ProcessPlan, check_processes, plan_processes

REQUIRED = ["--stargate-id=r", "--advertise-addr=10.0.0.1:50071", "--stargate-discovery-dns-name=x"]
REVERSE = ["--backend-connectivity=reverse", "--reverse-tunnel-listen-addr=0.0.0.0:50072"]
NAMED = "--advertised-hostname-template=router.example"
HTTP, MODELS = SocketAddress("0.0.0.0", 8000), SocketAddress("0.0.0.0", 50073)


def settings(*arguments: str) -> Settings:
    return parse([*REQUIRED, *arguments], {})


def plans(count: int, *arguments: str) -> list[ProcessPlan]:
    return plan_processes(settings(*arguments), count, HTTP, MODELS)


def refusal(count: int, *arguments: str) -> str:
    with pytest.raises(StartupError) as caught:
        check_processes(settings(f"--processes={count}", *arguments), count)
    return caught.value.report()


def test_process_i_has_an_id_and_explicit_ports_of_its_own() -> None:
    first, second = plans(2, *REVERSE, "--reverse-tunnel-pylon-dial-addr=203.0.113.1:7000")
    assert (first.stargate_id, second.stargate_id) == ("r-0", "r-1")
    assert second.options == {
        "--processes": "1",
        "--stargate-id": "r-1",
        "--advertise-addr": "10.0.0.1:50072",
        "--listen-addr": "0.0.0.0:50072",
        "--reverse-tunnel-listen-addr": "0.0.0.0:50073",
        "--reverse-tunnel-pylon-dial-addr": "203.0.113.1:7001",
        "--http-listen-addr": "0.0.0.0:8000",
        "--model-discovery-listen-addr": "0.0.0.0:50073",
        "--ports-file": None,
    }
    assert first.options["--listen-addr"] == "0.0.0.0:50071"


def test_the_port_for_openai_clients_is_shared_if_there_is_one() -> None:
    shared = SocketAddress("0.0.0.0", 8080)
    for plan in plan_processes(settings(*REVERSE), 2, HTTP, MODELS, shared):
        assert plan.options["--openai-listen-addr"] == "0.0.0.0:8080"
    text = refusal(4, *REVERSE, NAMED, "--openai-listen-addr=0.0.0.0:50074", "--model-discovery-listen-addr=0.0.0.0:1")
    assert "port 50074 would be the gRPC port of process 3" in text


def test_a_port_of_zero_stays_and_an_address_without_port_too() -> None:
    _, second = plans(
        2,
        "--listen-addr=[::1]:0",
        "--backend-connectivity=reverse",
        "--reverse-tunnel-listen-addr=127.0.0.1:0",
        "--reverse-tunnel-pylon-dial-addr=door.example",
    )
    assert second.options["--listen-addr"] == "[::1]:0"
    assert second.options["--reverse-tunnel-listen-addr"] == "127.0.0.1:0"
    assert "--reverse-tunnel-pylon-dial-addr" not in second.options


def test_a_process_gets_the_arguments_of_the_router_with_its_own_values() -> None:
    given = ["--quic-insecure", "--listen-addr", "0.0.0.0:1", "--ports-file=x", "--stargate-id=r", "--access-log"]
    changed = COMMAND_LINE.replaced(given, {"--listen-addr": "0.0.0.0:2", "--stargate-id": "-r", "--ports-file": None})
    assert changed == ["--quic-insecure", "--access-log", "--listen-addr=0.0.0.0:2", "--stargate-id=-r"]


@pytest.mark.parametrize(
    "arguments",
    [
        [*REVERSE],
        [*REVERSE, "--advertised-hostname-template={pod_name}.x"],
        ["--advertised-hostname-template={pod_name}.x"],
        ["--pod-name=p", "--pod-namespace=n"],
    ],
)
def test_a_name_for_each_pod_excludes_several_processes(arguments: list[str]) -> None:
    text = refusal(2, *arguments)
    assert text.startswith("Error: --processes=2 is not possible with {pod_name} in --advertised-hostname-template\n")
    assert "at one QUIC port" in text


def test_a_refusal_names_the_number_that_auto_was() -> None:
    with pytest.raises(StartupError, match=r"--processes=auto \(4\) is not possible with"):
        check_processes(settings("--processes=auto", *REVERSE), 4)


def test_discovery_by_srv_records_excludes_several_processes() -> None:
    pod = ["--pod-name=p", "--pod-namespace=n", NAMED]
    assert "is not possible with --pod-name and --pod-namespace" in refusal(2, *pod)
    check_processes(settings(*pod, "--disable-dns-discovery"), 2)


def test_direct_connectivity_without_names_of_pods_needs_no_template() -> None:
    check_processes(settings(), 2)


@pytest.mark.parametrize(
    ("count", "arguments", "text"),
    [
        (3, [], "port 50073 would be the gRPC port of process 2"),
        (2, ["--http-listen-addr=127.0.0.1:50072"], "port 50072 would be the gRPC port of process 1"),
        (2, ["--metrics-port=50071"], "port 50071 would be the gRPC port of process 0"),
        (3, ["--listen-addr=0.0.0.0:65534"], "its last process would have port 65536"),
        (3, [*REVERSE[:1], "--reverse-tunnel-listen-addr=0.0.0.0:65534", NAMED], "would have port 65536"),
    ],
)
def test_ports_that_would_meet_or_do_not_exist_are_refused(count: int, arguments: list[str], text: str) -> None:
    assert text in refusal(count, *arguments)


def test_ports_of_other_hosts_and_ephemeral_ones_do_not_meet() -> None:
    apart = ["--listen-addr=127.0.0.1:50071", "--model-discovery-listen-addr=127.0.0.2:50073"]
    check_processes(settings(*apart), 8)
    check_processes(settings("--listen-addr=0.0.0.0:0"), 64)


def test_the_number_is_from_one_to_sixty_four_or_that_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert number_of_processes(settings()) == 1
    assert number_of_processes(settings("--processes=64")) == 64
    for cores, expected in ((3, 3), (500, 64)):
        monkeypatch.setattr("router.supervisor.cpu_limit.cores", lambda cores=cores: cores)
        assert number_of_processes(settings("--processes=auto")) == expected
    for value, reason in (
        ("0", "value must be greater than 0"),
        ("65", "65 is not in 1..=64"),
        ("all", "invalid count, and not 'auto': invalid digit found in string"),
    ):
        with pytest.raises(UsageError, match=f"invalid value '{value}' for '--processes <N|auto>': {reason}"):
            settings(f"--processes={value}")
    assert parse(REQUIRED, {"STARGATE_PROCESSES": "2"}).processes == 2
