"""The Dockerfile has what is installed: every package of the wheel, and the programs under the paths that charts name."""

import re
import tomllib
from pathlib import Path

from kubernetes_router.settings import COMMAND_LINE
from kubernetes_router.startup_checks import check_options

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_of_the_wheel_is_copied() -> None:
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE)) == packages


def test_the_programs_have_the_paths_that_charts_name() -> None:
    (linked,) = re.findall(r"^RUN ln -s (.+) /usr/local/bin/$", DOCKERFILE, re.MULTILINE)
    programs = [Path(path).name for path in linked.split()]
    assert programs == ["stargate", "stargate-k8s-router"]
    assert set(programs) <= PROJECT["project"]["scripts"].keys()
    assert 'ENTRYPOINT ["/usr/local/bin/stargate"]' in DOCKERFILE


def test_the_arguments_of_the_example_in_front_of_routers_are_accepted() -> None:
    manifest = (ROOT / "deploy" / "kubernetes-router.yaml").read_text(encoding="utf-8")
    arguments = [one.replace("$(POD_NAMESPACE)", "ns") for one in re.findall(r"^ +- (--.+)$", manifest, re.MULTILINE)]
    assert len(arguments) == 4
    check_options(COMMAND_LINE.parse(arguments, {"POD_NAMESPACE": "ns"}))
    assert "command: [/usr/local/bin/stargate-k8s-router]" in manifest


def test_what_the_export_of_traces_needs_is_installed_and_pinned_as_the_extra_names_it() -> None:
    pinned = (ROOT / "requirements/otel.txt").read_text(encoding="utf-8")
    assert "-r requirements/otel.txt" in DOCKERFILE
    for requirement in PROJECT["project"]["optional-dependencies"]["otel"]:
        name, _, least = requirement.partition(">=")
        assert f"{name}=={least}" in pinned.splitlines()
