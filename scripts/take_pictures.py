"""Takes the pictures of the live page and of `router top` for the README: `scripts/take_pictures.py FOLDER` (`make pictures`).

A router with three workers and two models, requests for half a minute, and one engine that stops before the picture.
"""

import argparse
import shutil
import sys
import threading
import time
from pathlib import Path

from picture_of_top import take as take_top

from llm_request_router.testing import System

_WIDTH, _HEIGHT = 1200, 900
_BUSY_S = 25.0
_MODELS = ("chat-large", "chat-large", "embed-small")


def main() -> int:
    """Write `live-page.png`, `live-page-dark.png` and `top.svg`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pictures", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    with System.start() as system:
        for model in _MODELS:
            system.add_worker(model, engine_options=("--token-delay-ms", "25", "--ttft-ms", "60"))
        stopped = threading.Event()
        senders = [threading.Thread(target=_send, args=(system, number, stopped)) for number in range(4)]
        for sender in senders:
            sender.start()
        try:
            time.sleep(_BUSY_S)
            system.workers[2].engine.stop()
            url = f"http://localhost:{system.metrics_address.rpartition(':')[2]}"
            _take(f"{url}/", folder)
            take_top(url, folder)
        finally:
            stopped.set()
            for sender in senders:
                sender.join()
    return 0


def _send(system: System, number: int, stopped: threading.Event) -> None:
    count = 0
    while not stopped.wait(0.1 * (number + 1)):
        count += 1
        model = _MODELS[2] if number == 0 and count % 4 == 0 else _MODELS[0]
        body = (
            b'{"model":"%b","stream":true,"max_tokens":12,"messages":[{"role":"user","content":"hi"}]}' % model.encode()
        )
        headers = {
            **system.headers(model),
            "x-request-id": f"client-{number}-{count}",
            "x-routing-method": "round-robin",
        }
        headers["content-type"] = "application/json"
        system.request("POST", "/v1/chat/completions", headers=headers, body=body, timeout_s=20)


def _take(url: str, folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, scheme in (("live-page.png", "light"), ("live-page-dark.png", "dark")):
            page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT}, color_scheme=scheme)
            page.goto(url)
            page.locator("#requests").get_by_text("no worker can take the request now").first.wait_for()
            page.wait_for_timeout(2_500)
            page.screenshot(path=folder / name)
            page.close()
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
