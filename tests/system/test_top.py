"""`python -m router top` as a process in a terminal, over running routers and workers: docs/top.md."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llm_request_router import programs
from llm_request_router.testing import System
from llm_request_router.testing.system import Ports
from support.terminal import Terminal, needs_tmux
from support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SMALL, LARGE = (80, 24), (200, 60)
COLOURS = {str(number) for base in (30, 40, 90, 100) for number in range(base, base + 9)} - {"39", "49"}
REVERSE = "7"
"""Attributes of ECMA-48, SGR; 38 and 48 begin colours of the larger palettes."""

HOSTILE = "\x9b31m\x1b[2J\x1b]0;title\x07\u202e[red]x[/red]"
HOSTILE_SHOWN = "\\x9b31m\\x1b[2J\\x1b]0;title\\x07\\u202e[red]x[/red]"


@pytest.fixture(scope="module")
def system():
    with System.start() as running:
        running.add_worker("tiny")
        running.add_worker("tiny", "[b]other[/b]")
        yield running


def command(system, *words):
    return [*programs.command("router"), "top", "--url", f"http://{system.metrics_address}", *words]


def in_terminal(system, *words, size=SMALL, **environment):
    return Terminal(
        command(system, *words), size=size, cwd=ROOT, environment={**programs.environment(os.environ), **environment}
    )


def run(*words, **environment):
    return subprocess.run(
        [*programs.command("router"), "top", *words],
        env={**os.environ, **programs.environment(os.environ), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def api(system, name):
    return system.request("GET", f"/api/v1/{name}", address=system.metrics_address).body


def started_again(system, port):
    """The router of `system` anew, on the same operators' port."""
    words = list(system.router.command)
    words[words.index("--metrics-port") + 1] = port
    ports_file = Path(words[words.index("--ports-file") + 1])
    ports_file.unlink()
    system._router = system.spawn("router-again", words, programs.environment(os.environ))
    system._ports = system.router.until(lambda: Ports.read(ports_file), "it told its ports", timeout_s=30)


# On a screen ------------------------------------------------------------------------------------------------------------


@needs_tmux
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "200x60"])
def test_workers_and_requests_are_shown(system, size):
    with in_terminal(system, size=size) as top:
        found = top.shows("ready", "policy power-of-n", "[1 Workers 2]", "worker-0", "healthy", "q quit")
        columns, lines = size
        assert len(found.splitlines()) <= lines
        assert max(map(len, found.splitlines())) <= columns
        assert "server_identity" in found
        assert ("Address" in found) == (size == LARGE)
        assert ("Last requests" in found) == (size == LARGE)
        assert system.chat("tiny").status == 200
        top.press("4")
        top.shows("[4 Requests", "complete" if size == LARGE else "200", "tiny")
        top.press("3")
        top.shows("[3 Targets 2]", "[b]other[/b]", "1/1", "2/2")
        top.press("2")
        top.shows("[2 Clusters 2]", "worker-1")
        top.press("q")
        assert top.exit_code() == 0


@needs_tmux
def test_it_follows_the_terminal_from_small_to_large(system):
    with in_terminal(system) as top:
        assert "Last requests" not in top.shows("worker-0")
        top.resize(*LARGE)
        top.shows("Last requests", "Address")
        top.resize(*SMALL)
        top.until(lambda text: "Last requests" not in text, "the small form is back")


@needs_tmux
def test_rows_are_sorted_filtered_and_turned_by_keys(system):
    def workers(text):
        return [line.split()[0] for line in text.splitlines() if re.match(r"worker-\d +healthy", line)]

    with in_terminal(system) as top:
        assert workers(top.shows("Worker▲", "worker-1")) == ["worker-0", "worker-1"]
        top.press("r")
        assert workers(top.shows("Worker▼")) == ["worker-1", "worker-0"]
        top.press("s", "s")
        top.shows("RTT ms▼")
        top.press("S")
        top.shows("State▲")
        top.press("/")
        top.write("worker-1 state:healthy")
        assert workers(top.shows("filter: worker-1 state:healthy", "Workers 1/2")) == ["worker-1"]
        top.press("Enter")
        top.shows("q quit")
        top.press("Escape")
        assert len(workers(top.shows("[1 Workers 2]"))) == 2
        top.press("/")
        top.write("nobody")
        top.shows("none of 2 matches the filter")
        top.press("Escape")
        top.shows("[1 Workers 2]")
        top.press("Right", "Right")
        top.shows("◂")
        top.press("Left", "Left")
        lines = top.until(lambda text: "◂" not in text, "all columns are back").splitlines()
        line, column = next((number, text.index("Queue")) for number, text in enumerate(lines) if "Queue" in text)
        top.click(column, line)
        top.shows("Queue▼")
        top.click(column, line)
        top.shows("Queue▲")


@needs_tmux
def test_a_pause_keeps_what_is_shown(system):
    with in_terminal(system, "--table", "requests") as top:
        top.shows("[4 Requests")
        top.press("p")
        top.shows("PAUSED")
        system.request("POST", "/v1/chat/completions", headers={"x-request-id": "during-the-pause"})
        wait_until(lambda: b"during-the-pause" in api(system, "requests"), what="others see the request")
        top.until(lambda text: re.search(r"PAUSED [2-9]", text), "two seconds have passed")
        assert "during-th" not in top.screen()
        top.press("p")
        top.shows("during-th")


@needs_tmux
def test_the_detail_of_a_request_has_its_explanation(system):
    assert system.request("POST", "/v1/chat/completions", headers={"x-request-id": "bad"}).status == 400
    assert system.chat("tiny").status == 200
    with in_terminal(system, "--table", "requests") as top:
        top.shows("[4 Requests", "tiny")
        top.press("/")
        top.write("model:tiny")
        top.shows("filter: model:tiny")
        top.press("Enter")
        top.shows("filter: model:tiny", "tiny", "q quit")
        top.press("Enter")
        top.shows("The same request, if it came now", "=> worker-", "first_token_ms", "status               200")
        top.press("End")
        top.shows("All of the explanation", "decided by power-of-n", "cluster_id", "score")
        top.press("Escape")
        top.shows("[4 Requests")
        top.press("Escape")
        top.until(lambda text: "filter:" not in text, "the filter is gone")
        top.press("1")
        top.shows("[1 Workers 2]")
        top.press("Enter")
        top.shows("A request for its first model", "=> worker-", "inference_server_id  worker-0")
        top.press("q")
        top.shows("[1 Workers 2]")
        top.press("3", "Enter")
        top.shows("A request for it, if it came now", "=> worker-1")
        top.press("Escape")
        top.shows("[3 Targets")
        top.press("?")
        top.shows("sort by the next column")


@needs_tmux
def test_hostile_names_are_shown_harmlessly():
    with System.start() as system:
        system.add_worker(HOSTILE)
        system.request(
            "POST", "/v1/chat/completions", headers={"x-request-id": "[red]evil[/red]", "x-model": "[on red]m"}
        )
        for size in (SMALL, LARGE):
            with in_terminal(system, "--table", "targets", size=size) as top:
                found = top.shows(HOSTILE_SHOWN[:9], "[3 Targets 1]")
                assert found.splitlines()[0].startswith("test-router")
                assert re.search(r"^\\x9b31m.*1/1 +1", found, re.MULTILINE)
                top.press("Enter")
                found = top.shows(HOSTILE_SHOWN, "=> worker-0")
                assert len(found.splitlines()) <= size[1]
                top.press("Escape")
                top.shows("[3 Targets 1]")
                top.press("4")
                top.shows("[red]evil", "[on red]m"[:8], "[4 Requests")
                top.press("Enter")
                top.shows("request_id           [red]evil[/red]", "model                [on red]m")
        done = run("--url", system.metrics_address, "--once")
        assert HOSTILE_SHOWN in done.stdout
        assert all(line.isprintable() for line in done.stdout.splitlines())
        done = run("--url", system.metrics_address, "--once", "--json")
        assert done.stdout.isascii()
        assert json.loads(done.stdout)["state"]["targets"][0]["model"] == HOSTILE


@needs_tmux
def test_it_connects_again_when_the_router_was_restarted():
    with System.start() as system:
        port = system.metrics_address.rpartition(":")[2]
        system.add_worker("before")
        with in_terminal(system, "--table", "targets") as top:
            top.shows("before")
            system.router.stop()
            top.shows("NO CONNECTION", "before")
            started_again(system, port)
            system.add_worker("after-the-restart")
            found = top.until(
                lambda text: "after-the-restart" in text and "NO CONNECTION" not in text, "it shows the new router"
            )
            assert "up" in found
            assert system.chat("after-the-restart").status == 200
            top.press("4")
            top.shows("[4 Requests", "after-t")
            top.press("C-c")
            assert top.exit_code() == 0


@needs_tmux
def test_several_processes_are_shown_as_one_router():
    with System.start("--processes=2") as system:
        system.add_worker("tiny")
        wait_until(lambda: b'"healthy_in":2' in api(system, "state"), what="both processes have the worker")
        for _ in range(4):
            assert system.chat("tiny").status == 200
        with in_terminal(system) as top:
            top.shows("processes 2/2", "[1 Workers 1]", "1/1 healthy")
            top.press("4")
            top.shows("[4 Requests 4]")
            top.press("Enter")
            top.shows("The same request, if it came now", "=> worker-0")


@needs_tmux
def test_a_token_that_changes_is_read_again(tmp_path):
    at_router, at_user = tmp_path / "router", tmp_path / "user"
    at_router.write_text("0123456789abcdef")
    at_user.write_text("0123456789abcdef")
    with System.start("--operators-token-file", str(at_router)) as system:
        port = system.metrics_address.rpartition(":")[2]
        words = [*programs.command("router"), "top", "--url", f"0.0.0.0:{port}", "--token-file", str(at_user)]
        with Terminal(words, cwd=ROOT, environment=programs.environment(os.environ)) as top:
            assert "0123456789abcdef" not in top.shows("ready", "http://0.0.0.0")
            at_router.write_text("fedcba9876543210")
            system.router.stop()
            started_again(system, port)
            top.shows("NO CONNECTION", "401: this needs the token")
            at_user.write_text("fedcba9876543210")
            top.until(lambda text: "NO CONNECTION" not in text, "it is connected")
            assert "fedcba" not in " ".join(psutil.Process(top.pid).cmdline())


@needs_tmux
def test_a_silent_worker_is_shown_as_such_and_a_stopped_one_is_gone():
    with System.start() as system:
        worker = system.add_worker("tiny")
        with in_terminal(system) as top:
            top.shows("healthy")
            worker.process.send(signal.SIGSTOP)
            try:
                top.shows("silent", "0/1 healthy")
            finally:
                worker.process.send(signal.SIGCONT)
            top.shows("1/1 healthy")
            worker.process.send(signal.SIGTERM)
            top.shows("[1 Workers 0]", "none")


@needs_tmux
def test_without_colours_it_sends_none(system):
    def attributes(top):
        return {one for found in re.findall(r"\x1b\[([0-9;]*)m", top.screen(styles=True)) for one in found.split(";")}

    with in_terminal(system, NO_COLOR="1") as top:
        top.shows("worker-0", "healthy")
        assert attributes(top) & COLOURS == set()
        assert REVERSE in attributes(top), "the cursor is visible without a colour"
    with in_terminal(system) as top:
        top.shows("worker-0", "healthy")
        assert attributes(top) & COLOURS


@needs_tmux
def test_a_signal_ends_it_and_leaves_the_terminal_usable(system):
    with in_terminal(system) as top:
        top.shows("worker-0")
        os.kill(top.pid, signal.SIGTERM)
        assert top.exit_code() == 0
        top.until(lambda text: "worker-0" not in text, "the screen before is back")


# Once -------------------------------------------------------------------------------------------------------------------


def test_once_prints_text_for_people_and_json_for_scripts(system):
    assert system.chat("tiny").status == 200
    done = run("--url", system.metrics_address, "--once", TERM="dumb")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Workers (2)\n" in done.stdout
    assert "worker-0" in done.stdout
    assert "\x1b" not in done.stdout
    done = run("--url", system.metrics_address, "--once", "--table=workers", "--sort=-worker", "--filter=-worker-7")
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("worker-")]
    assert rows == ["worker-1", "worker-0"]
    assert "Requests" not in done.stdout
    document = json.loads(run("--url", system.metrics_address, "--once", "--json").stdout)
    assert set(document) == {"state", "history", "requests"}
    assert {one["inference_server_id"] for one in document["state"]["workers"]} == {"worker-0", "worker-1"}


def test_nobody_at_the_address_is_said_so_in_one_line():
    done = run("--url", "127.0.0.1:1", "--once")
    assert done.returncode == 1
    assert done.stderr.startswith("error: http://127.0.0.1:1: ")
    assert done.stderr.endswith("see --url\n")
    assert done.stderr.count("\n") == 1


def test_another_host_name_needs_the_token_which_is_in_a_file(tmp_path):
    token, other = tmp_path / "token", tmp_path / "other"
    token.write_text("0123456789abcdef\n")
    other.write_text("another-token-of-some-length")
    with System.start("--operators-token-file", str(token)) as system:
        # An address that leads to this host and is none of the loopback: as from another host.
        port = system.metrics_address.rpartition(":")[2]
        url = f"http://0.0.0.0:{port}"
        refused = run("--url", url, "--once")
        assert (refused.returncode, refused.stdout) == (3, "")
        assert "--operators-token-file" in refused.stderr
        assert "this command: --token-file" in refused.stderr
        assert run("--url", url, "--once", "--token-file", str(other)).returncode == 3
        assert run("--url", url, "--once", "--token-file", str(tmp_path / "none")).returncode == 3
        allowed = run("--url", url, "--once", "--token-file", str(token))
        assert (allowed.returncode, allowed.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--url", "ftp://x"), "http://HOST:PORT"),
        (("--url", "http://u:p@x:1"), "--token-file"),
        (("--url", "http://x:1/path"), "neither path nor query"),
        (("--url", "http://x:port"), "not a URL"),
        (("--sort", "nothing"), "has no column `nothing`; it has worker, state"),
        (("--table", "flows", "--sort", "queue"), "table `flows` has no column"),
        (("--json",), "--json needs --once"),
        (("--nope",), "unrecognized arguments"),
        ((), "`top` needs a terminal; --once prints the state"),
    ],
)
def test_what_cannot_be_is_said_in_words(words, said):
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_without_textual_one_line_says_what_to_install_and_once_works(system, tmp_path):
    (tmp_path / "textual.py").write_text("raise ImportError('as if it were not installed')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run("--url", system.metrics_address, PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: `top` needs Textual: pip install 'llm-request-router[top]'; --once works without it\n"
    )
    assert run("--url", system.metrics_address, "--once", PYTHONPATH=path).returncode == 0


def test_the_help_teaches():
    done = run("--help", COLUMNS="100")
    assert done.returncode == 0
    for part in ("--token-file", "examples:", "exit codes:", "access:", "ssh -L"):
        assert part in done.stdout


def test_the_router_imports_nothing_of_it():
    code = "import sys, router.process.lifecycle, router.supervisor.lifecycle; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert not [name for name in done.stdout.split() if name.startswith(("router.top", "textual"))]
