"""The benchmark of the live page, in small."""

import re
import subprocess
import sys
from pathlib import Path


def test_it_tells_what_viewers_cost_and_how_long_frames_take():
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "live", "--workers=4", "--targets=2", "--viewers=3", "--rounds=1"),
            *("--seconds=1", "--settle-s=0.2", "--frames-s=1", "--requests-per-s=10"),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"^one report of a request: [0-9.]+ us", answer.stdout)
    assert re.search(r"^4 workers, 2 targets, 10 requests/s; 1 rounds of 1 s", answer.stdout, re.MULTILINE)
    assert re.search(r"3 viewers: +[0-9.]+ % .*, [0-9.]+ KiB per viewer and second", answer.stdout)
    assert re.search(r"^frames( with 4 workers shown: [1-9]|: not measured)", answer.stdout, re.MULTILINE)
