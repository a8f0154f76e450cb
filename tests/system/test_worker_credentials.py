"""A worker whose credential is not there when it starts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm_request_router.testing import System
from support.waiting import wait_until


def test_a_worker_whose_token_appears_late_stays_and_registers_then(tmp_path: Path) -> None:
    token = tmp_path / "token"
    with System.start(directory=tmp_path) as system, ThreadPoolExecutor(1) as pool:
        adding = pool.submit(system.add_worker, "m", options=[f"--auth-token-file={token}"])
        log = tmp_path / "worker-0.log"
        wait_until(lambda: log.exists() and "registration not possible" in log.read_text(), what="it is told")
        token.write_text("secret\n")
        adding.result()
        assert system.chat("m").status == 200
