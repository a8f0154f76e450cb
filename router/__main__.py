"""The process: `python -m router`, installed as `stargate`.

Signals are handled from the first moment on: as process 1 of a container an unhandled SIGTERM would be ignored, and the pod
would hang until it is killed. That is why the imports of everything else stand inside functions.
"""

import faulthandler
import os
import signal
import sys

from tunnel_protocol.observers import standard_streams


def main() -> None:
    """Run the router with the words of the command line; ends the process with the documented exit codes."""
    standard_streams.make_safe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_before_start)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # they mean nothing here, and their default action would end the process
    faulthandler.enable()
    if sys.argv[1:2] == ["explain"]:
        from router.operators import explain_command

        sys.exit(explain_command.main(sys.argv[2:]))
    from router.config.cli import settings_or_exit

    try:
        settings = settings_or_exit(sys.argv[1:], os.environ)
    except BrokenPipeError:
        # `--help | head`: the reader has seen enough.
        os._exit(0)
    from router.process.lifecycle import run_process

    code = run_process(settings, os.environ)
    # Nothing is left to clean up; a stuck thread of a library must not hold the process back.
    os._exit(code)


def _stop_before_start(_number: int, _frame: object) -> None:
    """Nothing runs yet: ending is a clean end."""
    os._exit(0)


if __name__ == "__main__":
    main()
