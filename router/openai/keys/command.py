"""`python -m router keys add|list|revoke`: changes and shows the file of API keys. A running router takes the file up by itself."""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from router.openai.keys.key_file import DIGEST_PREFIX, KEY_ID, KeyEntry, KeyFile, KeyFileError, LimitEntry
from router.openai.keys.key_format import digest_of, new_key
from router.openai.keys.key_store import KeyStore
from router.openai.limits.rule import RuleError, parse_rules
from tunnel_protocol.small_file import SmallFileError

FILE_VARIABLE = "STARGATE_OPENAI_KEYS_FILE"
"""The environment variable of `--openai-keys-file`, which is also the default of `--file`."""

_EXPIRES_IN = re.compile(r"([0-9]{1,5})([HDW])")
_HOURS = {"H": 1, "D": 24, "W": 168}
_DESCRIPTION = """Make, list and revoke the API keys of the OpenAI front.

The file holds SHA-256 digests, never the keys; it is the one that the router gets as --openai-keys-file. A running router
takes a change up within --openai-keys-poll-ms (a second), or at once after SIGHUP."""
_EPILOG = f"""examples:
  # the first key: it is printed once, on standard output alone, and cannot be shown again
  python -m router keys add --file keys.json --id alice

  # a key for one tenant's models, 60 requests and 100,000 tokens a minute, 8 requests at a time, for 90 days
  python -m router keys add --file keys.json --id team-a --routing-key team-a --model 'llama-*' \\
      --requests 60-M --tokens 100000-M,5000000-D --concurrency 8 --expires-in 90D

  # further limits for one model of these, and for each of all others
  python -m router keys add --file keys.json --id bob --model-limits '{{"big": {{"tokens": "1000-M"}}, "*": {{"concurrency": 4}}}}'

  python -m router keys list --file keys.json
  python -m router keys revoke --file keys.json --id team-a

limits are <number>-<S|M|H|D|W>: so many in a second, minute, hour, day or week; several with commas between.
The environment variable {FILE_VARIABLE} stands in for --file."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code: 0, 1 for a file that cannot be used or an id that is wrong, 2 for usage."""
    options = _parser().parse_args(arguments)
    path = options.file or os.environ.get(FILE_VARIABLE)
    if not path:
        sys.stderr.write(f"error: which file? Give --file PATH, or set {FILE_VARIABLE}\n")
        return 2
    store = KeyStore(Path(path))
    commands = {"add": _add, "list": _list, "revoke": _revoke}
    try:
        return commands[options.command](store, options)
    except (SmallFileError, KeyFileError) as error:
        text = str(error) if isinstance(error, SmallFileError) else f"{path}: {error}"
        sys.stderr.write(f"error: {text}\n")
        return 1


def _add(store: KeyStore, options: argparse.Namespace) -> int:
    key = new_key()
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        entry = _entry(options, key, now)
    except msgspec.ValidationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    with store.changing() as change:
        if any(one.id == entry.id for one in change.file.keys):
            raise KeyFileError(f"there is a key with the id '{entry.id}'; revoke it first, or take another id", "--id")
        change.file = KeyFile([*change.file.keys, entry])
    # Not before the file is written: a key that is printed is valid.
    sys.stderr.write(f"added '{entry.id}' to {store.path}; this is its key, which is not kept and not shown again:\n")
    sys.stdout.write(f"{key}\n")
    return 0


def _entry(options: argparse.Namespace, key: str, now: datetime) -> KeyEntry:
    """The entry that the options ask for. Raises `msgspec.ValidationError`."""
    expires = options.expires
    if options.expires_in is not None:
        expires = now + options.expires_in
    limits = LimitEntry(requests=options.requests, tokens=options.tokens, concurrency=options.concurrency)
    document = {
        "id": options.id,
        "digest": DIGEST_PREFIX + digest_of(key.encode()).hex(),
        "created": now,
        "expires": expires,
        "note": options.note,
        "priority": options.priority,
        "routing_keys": options.routing_key,
        "models": options.model,
        "limits": msgspec.to_builtins(limits) or None,
        "model_limits": options.model_limits,
    }
    return msgspec.convert({name: value for name, value in document.items() if value is not None}, KeyEntry)


def _list(store: KeyStore, options: argparse.Namespace) -> int:
    entries = store.read().keys
    if options.json:
        shown = [{**msgspec.to_builtins(one), "digest": one.digest[: len(DIGEST_PREFIX) + 12]} for one in entries]
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
        return 0
    now = datetime.now(UTC)
    table: list[tuple[str, ...]] = [("id", "created", "state", "routing keys", "models", "limits", "priority", "note")]
    table += [_row(one, now) for one in entries]
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    for row in table:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    return 0


def _row(entry: KeyEntry, now: datetime) -> tuple[str, ...]:
    state = "valid"
    if entry.expires is not None:
        state = "expired" if entry.expires <= now else f"until {entry.expires:%Y-%m-%d %H:%M}"
    limits = [] if entry.limits is None else [_limits(entry.limits)]
    limits += [f"{model}: {_limits(one)}" for model, one in entry.model_limits.items()]
    return (
        entry.id,
        "-" if entry.created is None else f"{entry.created:%Y-%m-%d}",
        state,
        _names(entry.routing_keys),
        _names(entry.models),
        "; ".join(limits) or "none",
        "-" if entry.priority is None else str(entry.priority),
        entry.note,
    )


def _names(names: list[str] | None) -> str:
    return "all" if names is None else ",".join(name or "(none)" for name in names) or "no one"


def _limits(entry: LimitEntry) -> str:
    parts = [f"{text} {what}" for text, what in ((entry.requests, "requests"), (entry.tokens, "tokens")) if text]
    return " ".join([*parts, *([] if entry.concurrency is None else [f"{entry.concurrency} at a time"])])


def _revoke(store: KeyStore, options: argparse.Namespace) -> int:
    with store.changing() as change:
        kept = [one for one in change.file.keys if one.id != options.id]
        if len(kept) == len(change.file.keys):
            raise KeyFileError(f"there is no key with the id '{options.id}'", "--id")
        change.file = KeyFile(kept)
    sys.stderr.write(f"revoked '{options.id}': routers refuse its key as soon as they see the new file\n")
    return 0


def _rules(text: str) -> str:
    try:
        return ",".join(str(rule) for rule in parse_rules(text))
    except RuleError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _id(text: str) -> str:
    if not re.fullmatch(KEY_ID, text):
        raise argparse.ArgumentTypeError(
            f"'{text}' is not 1 to 64 letters, digits, dots, underscores or hyphens, the first a letter or digit"
        )
    return text


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time like 2027-01-31T12:00:00Z") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _span(text: str) -> timedelta:
    match = _EXPIRES_IN.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not <number><H|D|W>, for example 90D")
    return timedelta(hours=int(match[1]) * _HOURS[match[2]])


def _document(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m router keys",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="add|list|revoke")
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument("--file", metavar="PATH", help=f"the file of keys (default: ${FILE_VARIABLE})")
    add = commands.add_parser("add", parents=[file], help="make a key and print it once").add_argument
    add("--id", required=True, type=_id, help="name of the key in lists, logs and metrics")
    add(
        "--routing-key",
        action="append",
        metavar="KEY",
        help="right to a routing key, repeatable; '' is none; default: all",
    )
    add(
        "--model",
        action="append",
        metavar="NAME",
        help="right to a model, repeatable; 'llama-*' is a beginning; default: all",
    )
    add("--requests", type=_rules, default="", metavar="RULES", help="limit of requests, for example 60-M,1000-D")
    add("--tokens", type=_rules, default="", metavar="RULES", help="limit of tokens, input and output together")
    add("--concurrency", type=int, metavar="N", help="how many of its requests may run at a time")
    add("--model-limits", type=_document, metavar="JSON", help="limits by model, see the examples of `keys --help`")
    add(
        "--priority",
        type=int,
        metavar="N",
        help="priority of its requests, 0 is the most urgent; default: the router's",
    )
    expiry = commands.choices["add"].add_mutually_exclusive_group()
    expiry.add_argument(
        "--expires", type=_moment, metavar="TIME", help="when it ends, for example 2027-01-31T12:00:00Z"
    )
    expiry.add_argument("--expires-in", type=_span, metavar="SPAN", help="how long it is valid: 12H, 90D, 4W")
    add("--note", default=None, help="a remark for `list`")
    listing = commands.add_parser("list", parents=[file], help="show ids, rights and limits; never a key")
    listing.add_argument("--json", action="store_true", help="as JSON, digests cut short")
    revoke = commands.add_parser("revoke", parents=[file], help="remove a key")
    revoke.add_argument("--id", required=True, help="name of the key")
    return parser
