"""Takes the picture of `router top` for the README: `scripts/picture_of_top.py URL FOLDER` writes `top.svg` (`make pictures`)."""

import argparse
import asyncio
import re
import sys
from pathlib import Path
from typing import Final

from router.top.client import RouterClient, decoded
from router.top.screen import TopApp

_SIZE: Final = (132, 40)
_FONT_OF_ANOTHER_HOST: Final = re.compile(r"@font-face \{.*?\}", re.DOTALL)


def main() -> int:
    """Show the router at URL for some seconds, without a terminal; returns the exit code."""
    parser = argparse.ArgumentParser(prog="picture_of_top", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    take(given.url, given.folder)
    return 0


def take(url: str, folder: Path) -> None:
    """Write `top.svg`. The router is on this host."""
    (folder / "top.svg").write_text(asyncio.run(_picture(url)), encoding="utf-8")


async def _picture(url: str) -> str:
    client = RouterClient(url, None)
    app = TopApp(client, decoded(await client.live()), url)
    async with app.run_test(size=_SIZE) as pilot:
        await pilot.pause(2.5)
        picture = app.export_screenshot(title="python -m router top")
    return _FONT_OF_ANOTHER_HOST.sub("", picture)


if __name__ == "__main__":
    sys.exit(main())
