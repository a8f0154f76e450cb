"""How async tests run: each on a loop of its own, with a deadline, and nothing left behind."""

import ast
import socket
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PREFACE = """
import asyncio, pytest, uvloop
from support.loops import VirtualTimeLoop
"""


@pytest.fixture
def run(pytester: pytest.Pytester):
    def run(test: str, **outcomes: int) -> str:
        pytester.makeconftest("from support.async_tests import *")
        pytester.makeini(
            "[pytest]\nmarkers =\n  loop: x\n  deadline: x\naddopts = -p no:cacheprovider --strict-markers"
        )
        pytester.makepyfile(PREFACE + test)
        ended = pytester.runpytest_inprocess()
        ended.assert_outcomes(**outcomes)
        return ended.stdout.str()

    return run


def test_an_async_test_runs_and_its_failure_is_one(run) -> None:
    told = run(
        """
async def test_right(tmp_path):
    await asyncio.sleep(0)
    assert tmp_path.is_dir()

@pytest.mark.parametrize("number", [1, 2])
async def test_wrong(number):
    await asyncio.sleep(0)
    assert number == 2
""",
        passed=2,
        failed=1,
    )
    assert "assert 1 == 2" in told


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "grpc"])
def test_a_test_beyond_its_deadline_is_ended_and_fails(run, loop: str) -> None:
    told = run(
        f"""
ended = []

@pytest.mark.loop({loop!r})
@pytest.mark.deadline(0.05)
async def test_slow():
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(1)

def test_it_has_been_cancelled():
    assert ended == [1]
""",
        passed=1,
        failed=1,
    )
    assert "not over after 0.05 s" in told


def test_in_virtual_time_the_deadline_is_one_of_real_time(run) -> None:
    told = run(
        """
pytestmark = [pytest.mark.loop("virtual"), pytest.mark.deadline(0.05)]

async def test_a_day():
    await asyncio.sleep(86_400)
    assert asyncio.get_running_loop().time() >= 86_400

async def test_for_ever():
    while True:
        await asyncio.sleep(1)

async def test_nothing_comes():
    await asyncio.Event().wait()
""",
        passed=1,
        failed=2,
    )
    assert "takes too long" in told
    assert "no timer is going to bring" in told


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "virtual", "grpc"])
def test_a_task_that_is_left_running_is_an_error_and_cancelled(run, loop: str) -> None:
    told = run(
        f"""
pytestmark = pytest.mark.loop({loop!r})
ended = []

async def forgotten():
    try:
        await asyncio.sleep(3600)
    finally:
        ended.append(1)

async def test_leaves_a_task():
    globals()["task"] = asyncio.create_task(forgotten())
    await asyncio.sleep(0)

def test_it_has_been_cancelled():
    assert ended == [1]
""",
        passed=2,
        errors=1,
    )
    assert "left running: forgotten" in told


def test_the_marker_chooses_the_loop_and_each_test_has_its_own(run) -> None:
    run(
        """
seen = []

async def test_default():
    seen.append(asyncio.get_running_loop())
    assert type(seen[-1]).__module__.startswith("asyncio")

@pytest.mark.loop("uvloop")
async def test_uvloop():
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)

@pytest.mark.loop("virtual")
async def test_virtual():
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

async def test_another():
    assert seen[0].is_closed()

@pytest.mark.loop("none such")
async def test_unknown(): ...
""",
        passed=4,
        failed=1,
    )


def test_async_fixtures_run_on_the_loop_of_their_test_before_and_after_it(run) -> None:
    told = run(
        """
said = []

@pytest.fixture
async def peer(tmp_path):
    task = asyncio.create_task(asyncio.sleep(3600))
    yield asyncio.get_running_loop()
    task.cancel()
    await asyncio.wait([task])
    said.append("closed")

@pytest.fixture
async def simple(peer):
    await asyncio.sleep(0)
    return peer

async def test_same_loop(peer, simple):
    assert peer is simple is asyncio.get_running_loop()
    assert said == []

def test_it_is_closed():
    assert said == ["closed"]

@pytest.fixture
async def broken():
    yield
    assert not "closed well"

async def test_whose_fixture_fails_afterwards(broken): ...
""",
        passed=3,
        errors=1,
    )
    assert "closed well" in told


def test_a_socket_is_refused_in_this_directory() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(AssertionError, match=r"socket\.bind"):
            sock.bind(("127.0.0.1", 0))
        with pytest.raises(AssertionError, match=r"socket\.connect"):
            sock.connect(("127.0.0.1", 9))


def test_no_test_runs_a_loop_of_its_own() -> None:
    ways = {"asyncio.run", "asyncio.Runner", "asyncio.new_event_loop", "uvloop.run", "uvloop.new_event_loop"}
    found = [
        f"{path.parent.name}/{path.name}:{node.lineno}"
        for path in Path(__file__).parents[1].glob("*/test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ways
    ]
    assert found == []
