"""The command line of `top`: options, what it says when something is missing, exit codes."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from router.top.ordering import Order, OrderError, order_called
from router.top.tables import TABLES, Table, table_called

EXIT_OK: Final = 0
EXIT_NO_ANSWER: Final = 1
"""The router is not reached, or its answer is not understood."""

EXIT_USAGE: Final = 2
"""The command line is wrong, or there is no terminal, or Textual is not installed."""

EXIT_REFUSED: Final = 3
"""The router wants a token or another one, or the token file cannot be used."""

EXIT_INTERRUPTED: Final = 130

_DESCRIPTION: Final = """\
The live state of a router in a terminal: targets, clusters and workers, the last minute and the last requests,
and why a request goes where it goes. It reads the operators' port (--metrics-port), changes nothing there, and
connects again by itself when the router restarts. `?` shows the keys."""

_EPILOG: Final = """\
examples:
  python -m router top                                      the router on this host
  python -m router top --url http://10.0.0.7:9090 --token-file token
  python -m router top --table requests --filter status:503
  python -m router top --once --table workers --sort -queue
  python -m router top --once --json | jq '.state.workers[] | select(.state != "healthy") | .inference_server_id'

access: a router on this host needs nothing if the URL has localhost or a loopback address. Any other needs the
token of its --operators-token-file; the token itself is never an argument, where other users could see it.
Alternatives without a token: ssh -L 9090:localhost:9090 HOST, kubectl port-forward POD 9090.

exit codes:
  0  ended by the user, or printed with --once
  1  no answer, or one that is not understood (with --once, or at the start)
  2  wrong command line, no terminal, or Textual is not installed (pip install 'llm-request-router[top]')
  3  the router wants a token or another one, or the token file cannot be used
  130  interrupted"""


def main(arguments: Sequence[str]) -> int:
    """Show a router until the user has enough of it, or print it once; returns the exit code."""
    # As other programs of a terminal: the router, which shares the entry point, treats signals its own way.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    parser = _parser()
    options = parser.parse_args(arguments)
    table = table_called(options.table) if options.table else None
    order = None
    if options.sort is not None:
        try:
            order = order_called(table or TABLES[0], options.sort)
        except OrderError as error:
            parser.error(f"--sort: {error}")
    if options.json and not options.once:
        parser.error("--json needs --once")
    if not options.once and (missing := _missing(os.environ)) is not None:
        sys.stderr.write(f"error: {missing}\n")
        return EXIT_USAGE
    try:
        return _run(options, table, order)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(options: argparse.Namespace, table: Table | None, order: Order | None) -> int:
    from router.top.client import AccessRefusedError, RouterClient, RouterError, decoded

    client = RouterClient(options.url, options.token_file)
    try:
        body = asyncio.run(client.live())
        live = decoded(body)
    except RouterError as error:
        refused = isinstance(error, AccessRefusedError)
        hint = "; this command: --token-file" if refused and options.token_file is None else ""
        sys.stderr.write(f"error: {options.url}: {error}{'' if refused else '; see --url'}{hint}\n")
        return EXIT_REFUSED if refused else EXIT_NO_ANSWER
    if options.once:
        from router.top.once import as_json, as_text

        if options.json:
            text = as_json(body)
        else:
            chosen = TABLES if table is None else (table,)
            first = chosen[0]
            orders = tuple((one, order if one is first and order else Order.of(one)) for one in chosen)
            text = as_text(live, orders, options.filter)
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stdout.flush()
        return EXIT_OK
    # Where a shell exports its size, the size would never change.
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    from router.top.screen import TopApp

    app = TopApp(client, live, options.url)
    if table is not None:
        app.model.choose(table)
    if order is not None:
        app.model.view.sort(order)
    app.model.filter(options.filter)
    app.run()
    return app.return_code or EXIT_OK


def _missing(environment: Mapping[str, str]) -> str | None:
    """What the screen needs and there is not, in one line."""
    try:
        import textual  # noqa: F401
    except ImportError:
        return "`top` needs Textual: pip install 'llm-request-router[top]'; --once works without it"
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):
        return "`top` needs a terminal; --once prints the state"
    if environment.get("TERM", "") in {"", "dumb"}:
        return "the terminal (TERM) cannot be drawn on; --once prints the state"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m router top",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--url",
        type=_url,
        default="http://127.0.0.1:9090",
        help="operators' port of the router; http:// may be left out (default: %(default)s)",
    )
    add(
        "--token-file",
        type=Path,
        metavar="PATH",
        help="file with the token of --operators-token-file; read for each connection",
    )
    add("--table", choices=[one.name for one in TABLES], help="the table at the start; with --once the only one")
    add(
        "--sort",
        metavar="COLUMN",
        help="sort the table (without --table: workers) by this column; -COLUMN or --sort=-COLUMN: the largest first",
    )
    add("--filter", default="", metavar="WORDS", help="show rows that have all these words; column:word, -word")
    add("--once", action="store_true", help="print the state as text and end; needs neither a terminal nor Textual")
    add("--json", action="store_true", help="with --once: print /api/v1/live (docs/api.md)")
    return parser


def _url(given: str) -> str:
    """The URL without a path. Raises `argparse.ArgumentTypeError`."""
    text = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a URL: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise argparse.ArgumentTypeError("not a URL of the form http://HOST:PORT")
    if parts.username is not None or parts.password is not None:
        raise argparse.ArgumentTypeError("no name or password belongs here; see --token-file")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError("only http://HOST:PORT: neither path nor query belongs here")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")
