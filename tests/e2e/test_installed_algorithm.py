"""The example of docs/balancing.md, "Writing your own", installed beside a router and put to work."""

import json
import re
from pathlib import Path

import pytest
from grpc_loop import run_grpc
from registered_worker import RegisteredWorker, ask

from llm_request_router.testing import ProcessEndedError, System

PAGE = Path(__file__).parents[2] / "docs" / "balancing.md"


@pytest.fixture
def packages(tmp_path):
    """A directory with the package of the page, as an installer would leave it."""
    section = PAGE.read_text().partition("## Writing your own")[2]
    module, entry_points = (re.search(f"```{kind}\n(.*?)```", section, re.DOTALL)[1] for kind in ("python", "toml"))
    group = re.search(r'\[project\.entry-points\."(.+)"\]', entry_points)[1]
    name, value = re.search(r'^([\w-]+) = "(.+)"$', entry_points, re.MULTILINE).groups()
    directory = tmp_path / "packages"
    (directory / "my_package-1.0.dist-info").mkdir(parents=True)
    (directory / "my_package.py").write_text(module)
    (directory / "my_package-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-package\nVersion: 1\n"
    )
    (directory / "my_package-1.0.dist-info" / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    return directory


def start(packages, tmp_path, policy):
    path = tmp_path / "lb.json"
    path.write_text(json.dumps(policy))
    return System.start(f"--lb-config-path={path}", environment={"PYTHONPATH": str(packages)})


def test_the_algorithm_of_an_installed_package_chooses_and_is_explained(packages, tmp_path):
    last = {"algorithm": "first-by-id", "reverse": True}
    with start(packages, tmp_path, {"default": "first-by-id", "models": {"last": last}}) as system:

        async def scenario():
            workers = [await RegisteredWorker(system, name).start("m", "last") for name in ("b", "a", "c")]
            try:
                assert {(await ask(system, "m"))[2] for _ in range(5)} == {"a"}
                assert {(await ask(system, "last"))[2] for _ in range(5)} == {"c"}
            finally:
                explained = json.loads(
                    system.request("GET", "/explain?model=last", address=system.metrics_address).body
                )
                for worker in workers:
                    await worker.stop()
            assert explained["outcome"]["cluster_id"] == "c"
            assert explained["algorithm"]["name"] == "first-by-id"

        run_grpc(scenario())


def test_without_the_package_its_name_stops_the_start(tmp_path):
    with pytest.raises(ProcessEndedError, match="first-by-id"):
        start(tmp_path, tmp_path, {"default": "first-by-id"})
