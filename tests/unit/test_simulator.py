"""The policy simulator: deterministic, complete, and able to tell policies apart."""

import json

import pytest

from benchmarks import simulator


def outcome(tmp_path, *words):
    target = tmp_path / "figures.json"
    simulator.run([*words, "--json", str(target)])
    return json.loads(target.read_text())


def test_same_seed_same_figures_and_every_request_is_accounted_for(tmp_path):
    words = ("--requests", "2000", "--policy", "pulsar", "--policy", "power-of-n")
    first, again = outcome(tmp_path, *words), outcome(tmp_path, *words)
    assert first == again
    for figures in first.values():
        assert sum(figures["engines"].values()) + figures["refused"] == 2000


def test_policies_differ_where_they_should(tmp_path):
    figures = outcome(
        tmp_path, "--requests", "4000", "--policy", "pulsar", "--policy", "random", "--policy", "power-of-n"
    )
    assert figures["pulsar"]["cache_hit_share"] > figures["random"]["cache_hit_share"]
    assert figures["power-of-n"]["ttft_ms"]["p95"] < figures["random"]["ttft_ms"]["p95"]


def test_a_manifest_and_a_configuration_file_are_replayed(tmp_path):
    manifest, config = tmp_path / "requests.jsonl", tmp_path / "lb.json"
    lines = [{"at_s": i * 0.01, "input_tokens": 100, "output_tokens": 5} for i in range(30)]
    manifest.write_text("\n".join(json.dumps(line) for line in lines))
    config.write_text(json.dumps({"default": "round-robin"}))
    figures = outcome(tmp_path, "--manifest", str(manifest), "--config", str(config), "--engines", "3")
    assert figures["lb.json"]["engines"] == {"engine-0": 10, "engine-1": 10, "engine-2": 10}


def test_a_line_that_is_no_request_is_named(tmp_path):
    manifest = tmp_path / "requests.jsonl"
    manifest.write_text('{"at_s": 0, "input_tokens": 1, "output_tokens": 1}\n{"at_s": "soon"}\n')
    with pytest.raises(SystemExit, match="line 2"):
        simulator.run(["--manifest", str(manifest)])


def test_the_plot_is_drawn(tmp_path):
    simulator.run(["--requests", "200", "--policy", "random", "--plot", str(tmp_path / "plot.svg")])
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()
