"""How many processes `--processes auto` is, from the files of control groups."""

import os
from pathlib import Path

import pytest

from router.supervisor.cpu_limit import cores, cpu_limit


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


def group(root: Path, path: str, **files: str) -> None:
    (root / path).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / path / name.replace("__", ".")).write_text(text)


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("max 100000\n", 8),
        ("", 8),
        ("nonsense", 8),
        ("1 2 3", 8),
        ("100000 0\n", 8),
    ],
)
def test_the_limit_of_a_container(tmp_path: Path, content: str, expected: int) -> None:
    group(tmp_path, ".", cpu__max=content)
    assert cores(tmp_path, own(tmp_path, "0::/\n")) == expected


def test_the_lowest_limit_of_the_own_group_and_those_around_it_counts(tmp_path: Path) -> None:
    group(tmp_path, "a.slice", cpu__max="300000 100000")
    group(tmp_path, "a.slice/b.service", cpu__max="max 100000")
    group(tmp_path, "c.slice", cpu__max="100000 100000")
    mine = own(tmp_path, "0::/a.slice/b.service\n")
    assert cpu_limit(tmp_path, mine) == 3.0
    assert cores(tmp_path, mine) == 3


def test_limits_of_version_one(tmp_path: Path) -> None:
    mine = own(tmp_path, "4:memory:/elsewhere\n3:cpu,cpuacct:/../pod/one\nunreadable\n")
    group(tmp_path, "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert cpu_limit(tmp_path, mine) is None
    group(tmp_path, "cpu,cpuacct/pod", cpu__cfs_quota_us="150000\n", cpu__cfs_period_us="100000\n")
    assert cpu_limit(tmp_path, mine) == 1.5
    assert cores(tmp_path, mine) == 1


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path / "none", tmp_path / "none") is None
    assert cores(tmp_path / "none", tmp_path / "none") == 8
