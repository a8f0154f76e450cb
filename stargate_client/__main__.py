"""`python -m stargate_client`: the worker process.

All other modules are imported inside `main`, because the standard descriptors must be made safe before a library opens files.
"""

import faulthandler
import os
import sys

from tunnel_protocol.observers import standard_streams


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code (1: could not start, or a task failed)."""
    standard_streams.make_safe()
    faulthandler.enable()
    from stargate_client.process import run_process
    from stargate_client.settings import parse

    return run_process(parse(sys.argv[1:]), os.environ, sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
