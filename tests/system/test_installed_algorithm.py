"""The algorithms of docs/balancing.md, "Writing your own", and of examples/custom_algorithm, installed beside a router and put to work."""

import asyncio
import json
import re
import tomllib
from pathlib import Path

import pytest

from llm_request_router.testing import ProcessEndedError, System
from support.registered_worker import RegisteredWorker, ask

pytestmark = pytest.mark.loop("grpc")


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "balancing.md"
EXAMPLE = ROOT / "examples" / "custom_algorithm"


def installed(directory, project, module, source, entry_points):
    """`directory` with one package in it, as an installer would leave it."""
    described = directory / f"{project}-1.0.dist-info"
    described.mkdir(parents=True)
    (directory / f"{module}.py").write_text(source)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1\n")
    (described / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in entry_points.items()
        )
    )
    return directory


@pytest.fixture
def packages(tmp_path):
    """The package of the page."""
    section = PAGE.read_text().partition("## Writing your own")[2]
    module, project = (re.search(f"```{kind}\n(.*?)```", section, re.DOTALL)[1] for kind in ("python", "toml"))
    entry_points = tomllib.loads(project)["project"]["entry-points"]
    return installed(tmp_path / "packages", "my_package", "my_package", module, entry_points)


@pytest.fixture
def example(tmp_path):
    """The package of the example; tests/system/test_examples.py has it from the installer."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    (module,) = project["tool"]["setuptools"]["py-modules"]
    source = (EXAMPLE / f"{module}.py").read_text()
    return installed(tmp_path / "packages", "example", module, source, project["project"]["entry-points"])


def start(packages, tmp_path, policy):
    path = tmp_path / "lb.json"
    path.write_text(json.dumps(policy))
    return System.start(f"--lb-config-path={path}", environment={"PYTHONPATH": str(packages)})


async def test_the_algorithm_of_an_installed_package_chooses_and_is_explained(packages, tmp_path):
    last = {"algorithm": "first-by-id", "reverse": True}
    with start(packages, tmp_path, {"default": "first-by-id", "models": {"last": last}}) as system:
        workers = [await RegisteredWorker(system, name).start("m", "last") for name in ("b", "a", "c")]
        try:
            assert {(await ask(system, "m"))[2] for _ in range(5)} == {"a"}
            assert {(await ask(system, "last"))[2] for _ in range(5)} == {"c"}
        finally:
            explained = json.loads(system.request("GET", "/explain?model=last", address=system.metrics_address).body)
            for worker in workers:
                await worker.stop()
        assert explained["outcome"]["cluster_id"] == "c"
        assert explained["algorithm"]["name"] == "first-by-id"


def test_without_the_package_its_name_stops_the_start(tmp_path):
    with pytest.raises(ProcessEndedError, match="first-by-id"):
        start(tmp_path, tmp_path, {"default": "first-by-id"})


async def test_the_example_fails_over_in_its_order(example, tmp_path):
    order = {"algorithm": "primary-standby", "order": ["b", "c"]}
    with start(example, tmp_path, {"models": {"m": order}}) as system:
        workers = [await RegisteredWorker(system, name).start("m") for name in ("a", "c", "b")]
        try:
            for expected in ("b", "c", "a"):
                assert {(await ask(system, "m"))[2] for _ in range(3)} == {expected}
                (leaving,) = (worker for worker in workers if worker.worker_id == expected)
                await leaving.stop()
                workers.remove(leaving)
                await asyncio.to_thread(gone, system, expected)
        finally:
            for worker in workers:
                await worker.stop()


def gone(system, cluster_id):
    """Wait until a cluster is no candidate any more."""

    def left():
        page = system.request("GET", "/explain?model=m", address=system.metrics_address).body
        return {candidate["cluster_id"] for candidate in json.loads(page)["candidates"]}

    system.router.until(lambda: cluster_id not in left() or None, f"{cluster_id} has gone")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "order must be a list of cluster ids"),
        ({"order": ["b", 1]}, "order must be a list of cluster ids"),
        ({"order": ["b"], "max_running": 0}, "max_running must be a number of requests, at least 1"),
        ({"order": ["b"], "spread": 2}, "unknown setting 'spread'"),
    ],
)
def test_the_example_refuses_wrong_settings_with_its_own_words(example, tmp_path, settings, told):
    with pytest.raises(ProcessEndedError, match=told):
        start(example, tmp_path, {"models": {"m": {"algorithm": "primary-standby", **settings}}})
