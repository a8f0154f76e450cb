"""The process: `python -m kubernetes_router`, installed as `stargate-k8s-router`.

Signal handlers are installed before anything else is imported, as in `router/__main__.py` and for the same reason.
"""

import faulthandler
import os
import signal
import sys

from tunnel_protocol.observers import standard_streams


def main() -> None:
    """Run the program with the arguments of the command line; ends the process with the documented exit codes."""
    standard_streams.make_safe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_before_start)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # unused here; their default action would end the process
    faulthandler.enable()
    from kubernetes_router.settings import COMMAND_LINE
    from router.telemetry import build

    try:
        settings = COMMAND_LINE.settings_or_exit(sys.argv[1:], os.environ, build.build_version)
    except BrokenPipeError:
        os._exit(0)  # `--help | head`: the reader has closed the pipe
    from kubernetes_router.lifecycle import run_process

    # Nothing is left to clean up; a blocked thread of a library must not keep the process alive.
    os._exit(run_process(settings, os.environ))


def _stop_before_start(_number: int, _frame: object) -> None:
    """Exit with 0: nothing has been started yet."""
    os._exit(0)


if __name__ == "__main__":
    main()
