"""`python -m benchmarks growth` with tiny sizes: real tunnels, a real router and real workers."""

import json

from benchmarks import growth

TINY = ["--streams", "2,4", "--tunnels", "1,3", "--bytes", "400,65536", "--workers", "3", "--requests", "20"]


def test_all_four_panels_are_measured_drawn_and_told(tmp_path, capsys):
    growth.run([*TINY, "--seconds", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "growth.json").read_bytes())
    assert found["ended"] == {}
    xs = {panel: [point["x"] for point in points] for panel, points in found["points"].items()}
    assert xs == {"streams": [2, 4], "tunnels": [1, 3], "workers": [3], "bytes": [400, 65_536]}
    for panel in ("streams", "tunnels", "bytes"):
        assert all(point["figures"]["us"] > 0 for point in found["points"][panel])
    assert found["points"]["workers"][0]["figures"]["core_percent"] > 0
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")
    assert capsys.readouterr().out == (tmp_path / "growth.md").read_text()
