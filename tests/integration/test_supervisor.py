"""The supervisor with processes that do what the test says: order of the start, messages, hung and silent ones, refusals."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from router.config.cli import parse
from router.control_plane.replicas import Replica
from router.process.supervision import (
    LINK_VARIABLE,
    MAX_MESSAGE_BYTES,
    Listen,
    Serving,
    Siblings,
    State,
    SupervisorLink,
    encode,
    link_descriptor,
)
from router.supervisor.operators import OperatorsPort, ProcessMetrics
from router.supervisor.plan import ProcessPlan
from router.supervisor.router_process import RouterProcess, inherited_environment
from router.supervisor.scrape import PAGE, NoPageError, fetch
from router.supervisor.supervisor import SILENT_S, FirstStartError, Slot, Supervisor
from support.waiting import eventually

SETTINGS = parse(["--stargate-id=r", "--advertise-addr=127.0.0.1:1", "--stargate-discovery-dns-name=x"], {})

FAKE = """
import json, os, signal, socket, sys, time
behaviour, number = sys.argv[1], sys.argv[2]
link = socket.socket(fileno=int(os.environ["STARGATE_SUPERVISOR_FD"]))
def send(**message):
    link.sendall(json.dumps(message).encode() + b"\\n")
def state(ready, listening):
    send(type="State", ready=ready, listening=listening)
if behaviour == "fails":
    sys.exit(3)
if behaviour == "starts":
    time.sleep(60)
if behaviour == "long":
    link.sendall(b"x" * 400_000)
    time.sleep(60)
if behaviour == "garbage":
    link.sendall(b"{}\\n")
    time.sleep(60)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stays" else signal.SIG_DFL)
send(type="Serving", addresses={"metrics": "127.0.0.1:1"}, replica=["r-" + number, "127.0.0.1:" + number, ""])
ready = behaviour != "unready"
state(ready, False)
for line in link.makefile():
    message = json.loads(line)
    print(number, line, flush=True)
    if message["type"] == "Listen":
        state(ready, message["wanted"])
"""


class Fakes:
    """Launches processes: what each slot does, one behaviour per start; the last one for ever."""

    def __init__(self, **behaviours: list[str]) -> None:
        self.behaviours = behaviours
        self.started: list[str] = []
        self.processes: dict[str, RouterProcess] = {}

    async def launch(self, plan: ProcessPlan) -> RouterProcess:
        left = self.behaviours[plan.stargate_id]
        behaviour = left.pop(0) if len(left) > 1 else left[0]
        self.started.append(f"{plan.stargate_id}:{behaviour}")
        if behaviour == "cannot":
            raise OSError("no such program")
        command = [sys.executable, "-c", FAKE, behaviour, plan.stargate_id[-1]]
        process = self.processes[plan.stargate_id] = await RouterProcess.start(command, os.environ)
        return process


def supervisor(fakes: Fakes, ended: list[Slot] | None = None, served: list[int] | None = None) -> Supervisor:
    plans = [ProcessPlan(stargate_id, {}) for stargate_id in fakes.behaviours]
    return Supervisor(
        plans,
        fakes.launch,
        on_ended=(ended if ended is not None else []).append,
        on_serving=lambda: (served if served is not None else []).append(1),
    )


Make = Callable[..., Supervisor]


@pytest.fixture
async def make() -> AsyncGenerator[Make]:
    made: list[Supervisor] = []

    def one(*arguments: Any) -> Supervisor:
        made.append(supervisor(*arguments))
        return made[-1]

    yield one
    for each in made:
        each.signal(signal.SIGKILL)
        await each.drain(10)


class Output:
    """What the processes have printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self.text = ""

    async def has(self, line: str) -> None:
        """Wait for a line."""

        def printed() -> bool:
            self.text += self._capfd.readouterr().out
            return line in self.text

        await eventually(printed)


async def test_the_first_process_starts_alone_and_each_is_told_of_the_other(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    fakes = Fakes(a0=["good"], a1=["good"])
    running = make(fakes)
    await running.start()
    assert fakes.started == ["a0:good", "a1:good"]
    output = Output(capfd)
    await output.has('0 {"type":"Siblings","replicas":[["r-1","127.0.0.1:1",""]]}')
    await output.has('1 {"type":"Siblings","replicas":[["r-0","127.0.0.1:0",""]]}')


async def test_a_process_that_is_not_ready_is_told_to_close_its_ports(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    await make(Fakes(a0=["unready"], a1=["good"])).start()
    output = Output(capfd)
    await output.has('0 {"type":"Listen","wanted":false}')
    assert output.text.index('0 {"type":"Listen","wanted":true}') < output.text.index('0 {"type":"Listen","wanted":f')
    assert '1 {"type":"Listen","wanted":false}' not in output.text


@pytest.mark.parametrize(
    ("behaviours", "started", "code"),
    [
        ({"a0": ["fails"], "a1": ["good"]}, ["a0:fails"], 3),
        ({"a0": ["good"], "a1": ["fails"]}, ["a0:good", "a1:fails"], 3),
        ({"a0": ["cannot"]}, ["a0:cannot"], 1),
    ],
)
async def test_a_first_start_that_fails_is_not_tried_again(
    make: Make, behaviours: dict[str, list[str]], started: list[str], code: int
) -> None:
    fakes = Fakes(**behaviours)
    with pytest.raises(FirstStartError) as caught:
        await make(fakes).start()
    assert (fakes.started, caught.value.code) == (started, code)


async def test_a_process_that_ended_is_started_again_until_it_stays(make: Make) -> None:
    fakes = Fakes(a0=["good"], a1=["good", "fails", "cannot", "good"])
    ended: list[Slot] = []
    served: list[int] = []
    running = make(fakes, ended, served)
    await running.start()
    fakes.processes["a1"].signal(signal.SIGKILL)
    await eventually(lambda: served)
    assert fakes.started == ["a0:good", "a1:good", "a1:fails", "a1:cannot", "a1:good"]
    assert ended == [running.slots[1]]
    assert running.slots[1].restarts.restarts == 3


@pytest.mark.parametrize("behaviour", ["long", "garbage"])
async def test_a_process_that_sends_a_message_beyond_the_limit_or_none_is_killed(make: Make, behaviour: str) -> None:
    fakes = Fakes(a0=["good", behaviour, "good"])
    running = make(fakes)
    await running.start()
    fakes.processes["a0"].signal(signal.SIGKILL)
    await eventually(lambda: len(fakes.started) == 3 and running.slots[0].serving)


async def test_a_silent_process_is_killed_and_started_again(make: Make) -> None:
    fakes = Fakes(a0=["good"], a1=["good"])
    running = make(fakes)
    await running.start()
    running.end_silent()
    fakes.processes["a1"].last_message_at -= SILENT_S + 1
    running.end_silent()
    await eventually(lambda: len(fakes.started) == 3 and running.slots[1].serving)
    assert fakes.started[2] == "a1:good"


async def test_a_process_that_reads_no_messages_is_killed() -> None:
    process = await RouterProcess.start([sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
    told = [Replica("x" * 1_000, "y")] * 100
    while process._writer.transport.get_write_buffer_size() <= MAX_MESSAGE_BYTES:
        process.send(Siblings(told))
    process.send(Listen(True))
    assert await process.run(lambda: None) == -signal.SIGKILL
    process.send(Listen(True))
    process.signal(signal.SIGTERM)


async def test_a_program_that_does_not_exist_leaves_nothing_open() -> None:
    with pytest.raises(FileNotFoundError):
        await RouterProcess.start(["/none/program"], {})


async def test_the_drain_waits_kills_what_stays_and_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.supervisor.supervisor.LAST_STEPS_S", 0.0)
    running = make(Fakes(a0=["good"], a1=["stays"]))
    await running.start()
    assert not await running.drain(0.3)
    assert running.slots[1].process is None


async def test_a_defect_in_following_a_process_is_told_and_ends_the_start(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    fakes = Fakes(a0=["good"])

    async def defect(_plan: ProcessPlan) -> RouterProcess:
        raise ZeroDivisionError

    running = make(fakes)
    running._launch = defect
    with pytest.raises(ZeroDivisionError):
        await running.start()
    assert isinstance(running.failed.result(), ZeroDivisionError)
    assert "a process of the router is not followed any more" in capfd.readouterr().out
    assert not await running.drain(1)


async def test_the_drain_of_what_has_not_begun_is_clean(make: Make) -> None:
    assert await make(Fakes(a0=["starts"])).drain(1)
    fakes = Fakes(a0=["starts"])
    running = make(fakes)
    starting = asyncio.create_task(running.start())
    await eventually(lambda: fakes.processes)
    assert await running.drain(5)
    starting.cancel()
    await asyncio.wait([starting])


async def test_a_drain_between_two_starts_is_clean(make: Make) -> None:
    fakes = Fakes(a0=["good", *["fails"] * 20])
    running = make(fakes)
    await running.start()
    fakes.processes["a0"].signal(signal.SIGKILL)
    await eventually(lambda: running.slots[0].restarts.restarts >= 3 and running.slots[0].process is None)
    assert await running.drain(5)


# --- the link, at the end of the process


async def test_the_link_of_a_process_calls_what_the_supervisor_asks_for() -> None:
    ours, theirs = socket.socketpair()
    link = await SupervisorLink.open(theirs.detach())
    seen: list[object] = []
    link.on_siblings = seen.append
    link.on_listen = seen.append
    link.on_end = lambda: seen.append("end")
    link.start()
    link.send(Serving({"grpc": "127.0.0.1:1"}, Replica("r-0", "127.0.0.1:1")))
    link.send(State(ready=True, listening=False))
    loop = asyncio.get_running_loop()
    ours.setblocking(False)
    lines: bytes = b""
    while lines.count(b"\n") < 2:
        lines += await loop.sock_recv(ours, 10_000)
    assert [json.loads(line)["type"] for line in lines.splitlines()] == ["Serving", "State"]
    ours.sendall(encode(Siblings([Replica("r-1", "127.0.0.1:2")])) + encode(Listen(True)))
    await eventually(lambda: len(seen) == 2)
    assert seen == [(Replica("r-1", "127.0.0.1:2"),), True]
    ours.close()
    await eventually(lambda: "end" in seen)
    await link.close()
    link.send(State(ready=True, listening=True))


@pytest.mark.parametrize("sent", [b"nonsense\n", b"x" * (MAX_MESSAGE_BYTES + 1)])
async def test_what_is_no_message_ends_the_link_of_a_process(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    link = await SupervisorLink.open(theirs.detach())
    ended = asyncio.Event()
    link.on_end = ended.set
    link.start()
    ours.setblocking(False)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(ours, sent))
    await asyncio.wait_for(ended.wait(), 10)
    await link.close()
    await asyncio.wait([sending])
    sending.exception()
    ours.close()


def test_the_environment_names_the_link() -> None:
    assert link_descriptor({}) is None
    assert link_descriptor({LINK_VARIABLE: "x"}) is None
    assert link_descriptor({LINK_VARIABLE: "7"}) == 7
    assert inherited_environment({"STARGATE_PORTS_FILE": "x", "A": "b"}) == {"A": "b"}


# --- the metrics port


class OnePage:
    """An HTTP server that gives every client the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[bytes] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        writer.close()


async def test_a_page_is_fetched_with_status_and_type() -> None:
    server = OnePage(b"HTTP/1.1 404 Not Found\r\nContent-Type: a/b\r\ncontent-length: 2\r\n\r\nxy")
    async with server as address:
        assert await fetch(address, b"/a?b", 5) == (404, b"a/b", b"xy")
    assert server.asked[0].startswith(b"GET /a?b HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "0 bytes read"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "a body of -1 bytes"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "invalid literal"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", "2 bytes read"),
        (b"x" * 20_000 + b"\r\n\r\n", "limit"),
    ],
)
async def test_an_answer_that_is_none_is_told_as_such(answer: bytes, reason: str) -> None:
    async with OnePage(answer) as address:
        with pytest.raises(NoPageError, match=reason):
            await fetch(address, b"/", 5)


async def test_a_page_is_bounded() -> None:
    size = (PAGE.bytes or 0) + 1
    async with OnePage(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size) as address:
        with pytest.raises(NoPageError, match=f"a body of {size} bytes"):
            await fetch(address, b"/", 5)


async def test_a_process_that_does_not_answer_is_not_waited_for() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(NoPageError, match=r"no answer within 0\.05 s"):
        await fetch(f"127.0.0.1:{silent.getsockname()[1]}", b"/", 0.05)
    with pytest.raises(NoPageError, match="Connect call failed"):
        await fetch("127.0.0.1:1", b"/", 5)


class ServingSlot(Slot):
    """A slot whose process is at this address."""

    def __init__(self, stargate_id: str, address: str | None) -> None:
        super().__init__(ProcessPlan(stargate_id, {}))
        self.address = address
        if address is not None:
            self.process = RouterProcess(None, None, None, 0.0)  # type: ignore[arg-type]
            self.process.serving = Serving({"metrics": address}, Replica("r", "x"))


PAGE_OF_ONE = b"# HELP stargate_requests_total x\n# TYPE stargate_requests_total counter\nstargate_requests_total 3\n"
PAGE_OF_ONE += (
    b"# HELP stargate_requests_in_flight x\n# TYPE stargate_requests_in_flight gauge\nstargate_requests_in_flight 1\n"
)


def answer_of(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def test_counters_stay_when_a_process_does_not_answer_and_when_it_ends() -> None:
    server = OnePage(answer_of(PAGE_OF_ONE))
    async with server as address:
        slot = ServingSlot("r-0", address)
        metrics = ProcessMetrics(SETTINGS, lambda: [slot])
        pages = await asyncio.gather(*(metrics.page(additional=additional) for additional in (True, False)))
        assert len(server.asked) == 1
        assert "stargate_requests_total 3\n" in pages[0]
        assert "stargate_requests_in_flight 1\n" in pages[0]
        assert 'stargate_process_up{stargate_id="r-0"} 1\n' in pages[0]
        assert pages[1].count("\nstargate_") == 1
        server.answer = answer_of(b"nonsense\n")
        page = await metrics.page(additional=True)
        assert "stargate_requests_total 3\n" in page
        assert "in_flight" not in page
        metrics.retire(slot)
        slot.process = None
        page = await metrics.page(additional=True)
        assert "stargate_requests_total 3\n" in page
        assert 'stargate_process_up{stargate_id="r-0"} 0\n' in page


@pytest.mark.parametrize("answer", [answer_of(PAGE_OF_ONE), b""])
async def test_a_process_that_ends_while_it_is_asked_counts_once(answer: bytes) -> None:
    slot: ServingSlot
    metrics: ProcessMetrics

    class Ending(OnePage):
        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.asked:
                metrics.retire(slot)
                slot.process = None
                self.answer = answer
            await super()._serve(reader, writer)

    async with Ending(answer_of(PAGE_OF_ONE)) as address:
        slot = ServingSlot("r-0", address)
        metrics = ProcessMetrics(SETTINGS, lambda: [slot])
        for _ in range(2):
            assert "stargate_requests_total 3\n" in await metrics.page(additional=False)


@pytest.fixture
async def port() -> AsyncGenerator[Callable[..., Any]]:
    servers = []

    async def start(*slots: Slot) -> str:
        metrics = ProcessMetrics(SETTINGS, lambda: slots)
        server = OperatorsPort(SETTINGS, metrics, lambda: slots).server()
        bound = socket.create_server(("127.0.0.1", 0))
        bound.setblocking(False)
        await server.start(bound)
        servers.append(server)
        return f"127.0.0.1:{bound.getsockname()[1]}"

    yield start
    for server in servers:
        server.abort()
        await server.drain(1)


async def test_explain_without_a_process_that_serves_is_503(port: Callable[..., Any]) -> None:
    address = await port(ServingSlot("r-0", None))
    assert (await fetch(address, b"/explain?model=m", 5))[::2] == (503, b'{"error":"the process did not answer"}')
    assert (await fetch(address, b"/explain?process=x", 5)).status == 400


async def test_a_defect_in_a_page_is_an_answer_and_a_log_line(
    port: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def defect(*_given: object, **_named: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(ProcessMetrics, "page", defect)
    assert (await fetch(await port(), b"/metrics", 5)).status == 500
    assert "a page of the operators' port failed" in capsys.readouterr().out


async def test_what_is_no_request_is_refused(port: Callable[..., Any]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int((await port()).rpartition(":")[2]))
    writer.write(b"nonsense\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()


def test_ports_files_are_for_the_supervisor_alone(tmp_path: Path) -> None:
    assert "STARGATE_PORTS_FILE" not in inherited_environment({"STARGATE_PORTS_FILE": str(tmp_path)})
