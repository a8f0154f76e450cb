"""The live page in a real browser, over running routers: docs/api.md."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.fleet import system as fleet
from llm_request_router import programs
from llm_request_router.testing import System
from llm_request_router.testing.system import Ports
from router.operators import live_pages
from support.browser import OTHER_NAME, Watched, browser, needs_browser

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

pytestmark = needs_browser

HOSTILE = "<img src=x onerror=document.title='broken'>"
SHOWN_WITHIN_S = 2.0
LOST_WITHIN_S = 5.0

NOTE_STATES = """
window.noted = {};
new MutationObserver(() => {
  for (const row of document.querySelectorAll("#workers tbody tr[data-key]")) {
    const text = row.cells[1].textContent.split(" ")[1];
    const seen = window.noted[row.dataset.key] ||= {};
    if (!(text in seen)) seen[text] = Date.now() / 1000;
  }
}).observe(document, {subtree: true, childList: true, characterData: true});
"""
"""Notes when the page first showed each worker in each state."""


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def watched(chromium):
    """Opens pages; at the end none of them may have had a problem."""
    contexts, pages = [], []

    def opened(system, path="/", **options):
        context = chromium.new_context(**{"viewport": {"width": 1300, "height": 1400}, **options})
        contexts.append(context)
        shown = Watched(context)
        pages.append(shown)
        shown.page.set_default_timeout(15_000)
        shown.page.add_init_script(NOTE_STATES)
        if system is not None:
            shown.page.goto(f"http://localhost:{port_of(system)}{path}")
        return shown

    yield opened
    problems = [problem for shown in pages for problem in shown.problems]
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def router():
    with System.start() as system:
        system.add_worker("tiny")
        yield system


def port_of(system):
    return int(system.ports.metrics.rpartition(":")[2])


def until(look, what, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.03)
    return found


def noted(shown, worker_id, *states):
    """When the page first showed the worker in one of these states."""
    found = shown.page.evaluate("id => window.noted[id] || {}", worker_id)
    return min((found[state] for state in states if state in found), default=None)


# --- what it shows -------------------------------------------------------------------------------------------------------


def test_it_tells_which_worker_serves_a_request_and_its_time_to_the_first_token(router, watched):
    shown = watched(router)
    assert router.chat("tiny").status == 200
    row = shown.row("requests", "tiny").filter(has_text="complete").first
    row.wait_for()
    cells = row.locator("td").all_inner_texts()
    assert cells[3] == "worker-0"
    assert cells[5] == "200"
    assert cells[6].endswith(" ms")
    assert "healthy" in shown.cell("workers", "worker-0", "State")
    assert shown.cell("targets", "tiny", "Workers") == "1 of 1"
    assert shown.page.locator("#flows path.does, #flows path.could").count() >= 1
    assert "ready" in shown.page.locator("#ready").inner_text()


def test_a_click_on_a_request_explains_it_and_so_does_the_form(router, watched):
    shown = watched(router)
    router.chat("tiny")
    page = shown.page
    shown.row("requests", "complete").first.get_by_role("button").click()
    page.locator("#outcome").wait_for()
    assert page.locator("#outcome").inner_text() == "Chosen: worker-0."
    assert "worker-0" in page.locator("#explained table tbody").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#explanation").is_visible()
    page.get_by_label("Model", exact=True).fill("nobody-serves-this")
    page.keyboard.press("Enter")
    page.locator("#outcome").wait_for()
    assert page.locator("#outcome").inner_text() == "404: nobody serves this target."
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Model", exact=True).fill("tiny")
    page.get_by_label("Method").fill("sticky")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_text("No explanation: unknown routing method 'sticky'").wait_for()


def test_it_filters_sorts_and_pauses(router, watched):
    router.add_worker("other")
    shown = watched(router)
    page = shown.page
    shown.row("workers", "worker-1").wait_for()
    order = lambda: [row.split("\t")[0] for row in page.locator("#workers tbody tr").all_inner_texts()]  # noqa: E731
    assert order() == ["worker-0", "worker-1"]
    page.get_by_role("button", name="Worker", exact=True).click()
    until(lambda: order() == ["worker-1", "worker-0"], "the last is first: the rows move in a later frame")
    assert page.locator("#workers th").first.get_attribute("aria-sort") == "descending"
    page.get_by_label("Show only").fill("worker-1")
    until(lambda: order() == ["worker-1"], "one worker is left")
    page.get_by_label("Show only").fill("")
    page.get_by_role("button", name="Pause").click()
    before = page.locator("#facts").inner_text()
    page.wait_for_timeout(2_500)
    assert page.locator("#facts").inner_text() == before
    page.get_by_role("button", name="Go on").click()
    until(lambda: page.locator("#facts").inner_text() != before, "it goes on")


def test_it_loads_nothing_from_elsewhere_and_is_small(router, watched):
    shown = watched(router)
    shown.row("workers", "worker-0").wait_for()
    origin = f"http://localhost:{port_of(router)}/"
    assert [url for url in shown.requested if not url.startswith((origin, "data:"))] == []
    reply = router.request("GET", "/", address=router.metrics_address)
    assert len(reply.body) < 150_000
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]


def test_hostile_names_are_shown_as_text(watched):
    with System.start() as system:
        _, url = system.add_engine(HOSTILE, name="engine")
        system.spawn(
            "worker",
            [
                *programs.command("stargate_client"),
                *("--upstream-http-base-url", url, "--model-name", HOSTILE, "--stargate-address", system.ports.grpc),
                *("--inference-server-id", HOSTILE, "--cluster-id", HOSTILE, "--backend-connectivity", "reverse"),
                "--quic-insecure",
            ],
            programs.environment(os.environ),
        )
        shown = watched(system)
        shown.row("workers", "healthy").first.wait_for()
        assert shown.cell("workers", "healthy", "Worker") == HOSTILE
        headers = {"x-request-id": HOSTILE, "x-model": HOSTILE, "x-input-tokens": "1", "x-routing-key": HOSTILE}
        for name in ("x-routing-key", "x-request-id"):
            system.request("POST", "/v1/chat/completions", headers=headers, body=b"{}")
            del headers[name]
        headers["x-request-id"] = HOSTILE
        body = json.dumps(
            {"model": HOSTILE, "stream": True, "messages": [{"role": "user", "content": HOSTILE}]}
        ).encode()
        assert system.request("POST", "/v1/chat/completions", headers=headers, body=body).status == 200
        shown.row("requests", "complete").first.wait_for()
        assert shown.cell("requests", "complete", "Worker") == HOSTILE
        shown.row("requests", "complete").first.get_by_role("button").click()
        shown.page.locator("#outcome").wait_for()
        assert HOSTILE in shown.page.locator("#outcome").inner_text()
        assert shown.page.locator("img").count() == 0
        assert shown.page.title() == "Router test-router"


# --- how soon ------------------------------------------------------------------------------------------------------------


def test_a_worker_is_shown_within_two_seconds_of_its_registration(router, watched):
    shown = watched(router)
    shown.row("workers", "worker-0").wait_for()
    starting = threading.Thread(target=router.add_worker, args=("soon",))
    starting.start()
    gauge = 'stargate_active_inference_servers{model="soon",routing_key=""}'
    until(lambda: router.metrics(additional=False).get(gauge), "the worker is routable")
    registered_at = time.time()
    starting.join()
    name = router.workers[-1].name
    seen_at = until(lambda: noted(shown, name, "healthy"), "the worker is shown")
    assert seen_at - registered_at < SHOWN_WITHIN_S


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_the_loss_of_a_worker_is_shown_within_five_seconds(router, watched, number):
    worker = router.add_worker(f"lost-by-{number.name}")
    shown = watched(router)
    name = worker.name
    until(lambda: noted(shown, name, "healthy"), "the worker is shown")
    at = time.time()
    worker.process.send(number)
    seen = until(lambda: noted(shown, name, "silent", "disconnected", "gone", "inactive"), "its loss is shown")
    if number is signal.SIGSTOP:
        worker.process.send(signal.SIGCONT)
    assert seen - at < LOST_WITHIN_S


# --- what it survives ------------------------------------------------------------------------------------------------------


def started_again(system, port):
    """The router of `system` anew, on the same operators' port."""
    command = list(system.router.command)
    command[command.index("--metrics-port") + 1] = str(port)
    ports_file = Path(command[command.index("--ports-file") + 1])
    ports_file.unlink()
    system._router = system.spawn("router-again", command, programs.environment(os.environ))
    system._ports = system.router.until(lambda: Ports.read(ports_file), "it told its ports", timeout_s=30)


def test_it_goes_on_by_itself_when_the_router_is_started_again(watched):
    with System.start() as system:
        port = port_of(system)
        shown = watched(system)
        until(lambda: "live" in shown.page.locator("#link").inner_text(), "it is connected")
        started_at = shown.page.evaluate("state.router.started_at")
        system.router.stop()
        until(lambda: "connection lost" in shown.page.locator("#link").inner_text(), "it says that the router is away")
        started_again(system, port)
        system.add_worker("after-the-restart")
        shown.row("targets", "after-the-restart").wait_for()
        assert shown.page.evaluate("state.router.started_at") > started_at
        assert shown.page.locator("#link").inner_text() == "live"
        system.chat("after-the-restart")
        shown.row("requests", "after-the-restart").first.wait_for()


def test_one_page_shows_all_processes_of_a_router(watched):
    with System.start("--processes=2") as system:
        system.add_worker("tiny")
        shown = watched(system)
        until(lambda: "(2 of 2)" in shown.page.locator("#workers").inner_text(), "both have the worker")
        for _ in range(8):
            assert system.chat("tiny").status == 200
        until(lambda: shown.page.evaluate("requests.length") >= 8, "all requests are listed")
        assert shown.page.locator("#policy").inner_text().count("● serving") == 2
        shown.row("requests", "complete").first.get_by_role("button").click()
        shown.page.locator("#outcome").wait_for()
        assert shown.page.locator("#outcome").inner_text() == "Chosen: worker-0."


def test_it_follows_two_hundred_workers_and_fifty_targets(watched, tmp_path):
    with fleet.System(" ".join(programs.command("router")), tmp_path) as system:
        system.start_router()
        system.start_simulator(200, 1_000, 100.0, models=50)
        shown = watched(None)
        shown.page.goto(system.page_url.replace("127.0.0.1", "localhost"))
        count = "document.querySelectorAll('#%s tbody tr[data-key]').length"
        until(lambda: shown.page.evaluate(count % "workers") == 200, "all workers are shown", 40)
        until(lambda: shown.page.evaluate(count % "targets") == 50, "all targets are shown")
        until(lambda: "(200 of 200 healthy)" in shown.page.locator("#h-workers").inner_text(), "all are healthy")
        until(lambda: shown.page.locator("#flows").get_by_text("and 184 more").count() == 1, "the rest is counted")
        shown.page.get_by_label("Show only").fill("simulated-199")
        until(lambda: shown.page.evaluate(count % "workers") == 1, "one is left")
        system.stop_simulator()
        shown.page.get_by_label("Show only").fill("")
        until(lambda: "(0 of 0 healthy)" in shown.page.locator("#h-workers").inner_text(), "their end is shown")


# --- who may see it --------------------------------------------------------------------------------------------------------


def test_from_another_host_name_it_asks_for_the_token_and_keeps_it_in_a_cookie(chromium, tmp_path):
    token = tmp_path / "token"
    token.write_text("a-token-of-operators")
    with System.start("--operators-token-file", str(token)) as system:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"http://{OTHER_NAME}:{port_of(system)}/")
        assert page.locator("#workers").count() == 0
        page.get_by_label("Token of this router").fill("another-token-of-others")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("this is not the token").wait_for()
        page.goto(f"http://{OTHER_NAME}:{port_of(system)}/")
        page.get_by_label("Token of this router").fill("a-token-of-operators")
        page.get_by_role("button", name="Log in").click()
        page.locator("#link", has_text="live").wait_for()
        assert page.url == f"http://{OTHER_NAME}:{port_of(system)}/"
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        assert "a-token-of-operators" not in cookie["value"]
        assert page.evaluate("document.cookie") == ""


# --- for everybody ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", ["light", "dark", "phone", "explanation", "login"])
def test_it_passes_an_accessibility_check(router, watched, chromium, look, tmp_path):
    router.chat("tiny")
    router.chat("nobody-serves-this")
    options = {"viewport": {"width": 390, "height": 844}} if look == "phone" else {}
    if look == "dark":
        options["color_scheme"] = "dark"
    shown = watched(router, **options)
    shown.row("requests", "complete").first.wait_for()
    if look == "explanation":
        shown.row("requests", "complete").first.get_by_role("button").click()
        shown.page.locator("#registered").wait_for()
    if look == "login":
        form = (Path(live_pages.__file__).parent / "login.html").read_text()
        shown.page.route("**/form", lambda route: route.fulfill(body=form, content_type="text/html"))
        shown.page.goto(f"http://localhost:{port_of(router)}/form")
    found = axe.Axe().run(shown.page)
    violations = [(one["id"], [node["target"] for node in one["nodes"]]) for one in found.response["violations"]]
    assert violations == []


def test_it_fits_a_phone(router, watched):
    shown = watched(router, viewport={"width": 360, "height": 740})
    shown.row("workers", "worker-0").wait_for()
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_everything_is_reached_and_used_by_keyboard(router, watched):
    router.chat("tiny")
    shown = watched(router)
    page = shown.page
    shown.row("requests", "complete").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the tables"
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("Boolean(document.activeElement.closest('#requests tbody'))"):
            break
    page.keyboard.press("Enter")
    page.locator("#outcome").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("Boolean(document.activeElement.closest('#requests tbody'))"), "the focus is where it was"


# --- the demo --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path):
    """The address of the live page of `make demo STAY=1`, and the process of its engine."""
    output = tmp_path / "demo.log"
    with output.open("wb") as log:
        running = subprocess.Popen(
            ["make", "demo", "STAY=1"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        found = until(lambda: re.search(r"See it work: (http://\S+)", output.read_text()), "the demo is up", 60)
        engine = next(
            one
            for one in psutil.Process(running.pid).children(recursive=True)
            if "stargate_client.mock_engine" in one.cmdline()
        )
        yield found[1], engine
    finally:
        for child in psutil.Process(running.pid).children(recursive=True):
            with suppress(psutil.Error):  # a zombie
                if "stargate_client.demo" in child.cmdline():
                    child.terminate()  # it ends all others
        running.wait(30)


def test_the_demo_shows_who_serves_how_soon_and_why_not(demo, watched):
    address, engine = demo
    shown = watched(None)
    page = shown.page
    page.goto(address)
    served = shown.row("requests", "complete").first
    served.wait_for()
    cells = served.locator("td").all_inner_texts()
    assert cells[3] in ("worker-1", "worker-2")
    first_token_ms = float(re.fullmatch(r"([0-9.]+) ms", cells[6])[1])
    assert 50 < first_token_ms < 2_000, "the engine of the demo takes 80 ms"
    engine.terminate()
    refused = shown.row("requests", "no worker can take the request now").filter(has_text="503").first
    refused.wait_for()
    until(
        lambda: shown.page.locator("#workers").inner_text().count("inactive") == 2, "both workers are shown as inactive"
    )
    refused = shown.row("requests", "no worker can take the request now").filter(has_text="503").first
    refused.get_by_role("button").click()
    page.locator("#outcome").wait_for()
    explained = page.locator("#explained").inner_text()
    assert "503: no worker can take the request now" in explained
    assert page.locator("#outcome").inner_text() == "503: nobody can be asked."
    assert "worker-1: ◐ inactive (it drains, or its engine does not answer)" in explained
