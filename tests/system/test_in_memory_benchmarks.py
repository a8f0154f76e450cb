"""The benchmarks without sockets: short runs of `handshake` and `gateway` give figures for every way."""

import json

from benchmarks import gateway, handshake


def test_a_handshake_has_a_cost_of_which_tls_is_a_part():
    cost = handshake.measure(2)
    assert 0 < cost.tls < cost.whole


def test_the_command_tells_what_a_thousand_workers_cost(capsys):
    handshake.run(["--handshakes", "1", "--rounds", "1"])
    assert "of which TLS" in capsys.readouterr().out.splitlines()[1]


def test_an_answer_costs_something_on_both_ports(capsys):
    ways = ["answer of an engine", "the same, OpenAI port, open", "the same, OpenAI port, key"]
    only = [word for way in ways for word in ("--only", way)]
    gateway.run([*only, "--json", "--repeat", "1", "--rounds", "1", "--chunks", "8", "--connections", "2"])
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == ways
    assert all(row["request"] > 0 for row in figures.values())
