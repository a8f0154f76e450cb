"""The load-balancer file: read at start, watched, swapped whole, and refused without harm."""

from pathlib import Path

import pytest

from llm_request_router.testing import ProcessEndedError, System
from support.waiting import wait_until

SUCCESS = 'stargate_lb_config_reloads_total{result="success"}'
REJECTED = 'stargate_lb_config_reloads_total{result="rejected"}'


def active(system: System) -> str:
    (found,) = [name for name in system.metrics() if name.startswith("stargate_lb_config_info")]
    return found


def until_counted(system: System, name: str) -> None:
    wait_until(lambda: system.metrics().get(name), 10, f"{name} is counted")


def test_a_changed_file_takes_effect_and_a_bad_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "lb.json"
    path.write_text('{"default": "round-robin"}')
    with System.start(f"--lb-config-path={path}", "--lb-config-poll-ms=30") as system:
        assert 'default_lb="round-robin"' in active(system)
        path.write_text('{"default": "random", "models": {"m": "round-robin"}}')
        until_counted(system, SUCCESS)
        assert 'default_lb="random"' in active(system)
        system.router.until_logged("load balancer config loaded default_lb=random model_overrides=1")
        before = active(system)
        path.write_text('{"default": "no-such-thing"}')
        until_counted(system, REJECTED)
        assert active(system) == before
        assert system.metrics()["stargate_lb_config_last_reload_success"] == 0
        system.router.until_logged("load balancer config rejected; retaining the last good one")
        path.unlink()
        assert system.request("GET", "/readyz").status == 200


@pytest.mark.parametrize("content", ["", "{", "[]", '{"defaults": "random"}', '{"default": "no-such-thing"}'])
def test_a_bad_file_stops_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lb.json"
    path.write_text(content)
    with pytest.raises(ProcessEndedError) as caught:
        System.start(f"--lb-config-path={path}")
    assert f"Error: failed to parse lb config file: {path}" in caught.value.log
    assert "Caused by:" in caught.value.log


def test_a_definition_that_cannot_be_built_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "lb.json"
    path.write_text('{"request_algorithms": {"random": "round-robin"}}')
    with pytest.raises(ProcessEndedError) as caught:
        System.start(f"--lb-config-path={path}")
    assert "Error: failed to create load balancer router" in caught.value.log
