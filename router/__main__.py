"""The process: `python -m router`, installed as `stargate`.

Signal handlers are installed before anything else is imported: for process 1 of a container the kernel ignores an unhandled
SIGTERM, and the pod would run until it is killed. That is why all other imports are inside functions.
"""

import faulthandler
import os
import signal
import sys

from tunnel_protocol.observers import standard_streams, structlog_import


def main() -> None:
    """Run the router with the arguments of the command line; ends the process with the documented exit codes."""
    standard_streams.make_safe()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_before_start)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # unused here; their default action would end the process
    faulthandler.enable()
    if sys.argv[1:2] == ["explain"]:
        from router.operators import explain_command

        sys.exit(explain_command.main(sys.argv[2:]))
    if sys.argv[1:2] == ["top"]:
        from router.top import command

        sys.exit(command.main(sys.argv[2:]))
    if sys.argv[1:2] == ["keys"]:
        from router.openai.keys import command as keys_command

        sys.exit(keys_command.main(sys.argv[2:]))
    structlog_import.import_structlog()
    from router.config.cli import settings_or_exit
    from router.telemetry import build

    try:
        settings = settings_or_exit(sys.argv[1:], os.environ, build.build_version)
    except BrokenPipeError:
        # `--help | head`: the reader has closed the pipe.
        os._exit(0)
    count = 1
    if settings.processes != 1:
        from router.supervisor.lifecycle import number_of_processes, run_processes

        count = number_of_processes(settings)
    if count > 1:
        code = run_processes(settings, count, sys.argv[1:], os.environ)
    else:
        from router.process.lifecycle import run_process

        code = run_process(settings, os.environ)
    # Nothing is left to clean up; a blocked thread of a library must not keep the process alive.
    os._exit(code)


def _stop_before_start(_number: int, _frame: object) -> None:
    """Exit with 0: nothing has been started yet."""
    os._exit(0)


if __name__ == "__main__":
    main()
