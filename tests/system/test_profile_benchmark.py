"""`python -m benchmarks profile`: whatever it runs leaves a flame graph, or it says what is missing."""

import json

import pytest

from benchmarks import profile


def test_a_benchmark_is_recorded_with_its_command_line_and_machine(tmp_path, capfd):
    inner = ["transport", "--requests", "3000", "--output-dir", str(tmp_path / "inner")]
    try:
        profile.run(["--rate", "200", "--output-dir", str(tmp_path), *inner])
    except SystemExit:
        if "Permission Denied" in capfd.readouterr().err:
            pytest.skip("processes may not be traced here")
        raise
    (folder,) = tmp_path.glob("profile-*")
    assert "<svg" in (folder / "flame.svg").read_text()
    assert json.loads((folder / "command.json").read_text())[-len(inner) :] == inner
    assert json.loads((folder / "environment.json").read_text())["kernel"]
    assert "written to" in capfd.readouterr().out


def test_without_a_profiler_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(profile.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="make setup"):
        profile.run(["--output-dir", str(tmp_path), "transport"])
