"""`python -m router explain`: asks a running router how it would route a request, and prints the answer as text."""

import argparse
import http.client
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

_COLUMNS = (
    "cluster_id",
    "rank",
    "band",
    "score",
    "rtt_ms",
    "queue_ms",
    "ttft_ms",
    "running",
    "concurrency",
    "backends",
    "rule",
)
_EPILOG = """examples:
  python -m router explain --model my-model
  python -m router explain --address 10.0.0.7:9090 --model my-model --routing-key tenant-a --input-tokens 2000
  python -m router explain --model my-model --method pulsar --affinity-key session-42 --json"""


def main(arguments: Sequence[str]) -> int:
    """Ask and print; returns the exit code (1: the router cannot be reached or refused the query)."""
    options = _parser().parse_args(arguments)
    query: list[tuple[str, str]] = [("model", options.model)]
    for name in ("routing_key", "method", "input_tokens", "priority", "affinity_key", "request_slo_ms", "elapsed_ms"):
        value = getattr(options, name)
        if value is not None:
            query.append((name, str(value)))
    query += [("exclude", cluster) for cluster in options.exclude]
    connection = http.client.HTTPConnection(options.address, timeout=5)
    try:
        connection.request("GET", f"/explain?{urlencode(query)}", headers=_authorization(options.token_file))
        response = connection.getresponse()
        body = response.read()
        if response.status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            sys.stderr.write(f"error: {body.decode('utf-8', 'replace').strip()} (this command: --token-file)\n")
            return 1
        document = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError) as error:
        sys.stderr.write(
            f"error: no answer from the metrics port of a router at {options.address}: {error}; see --address\n"
        )
        return 1
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        sys.stderr.write(f"error: {document.get('error', response.status)}\n")
        return 1
    sys.stdout.write(json.dumps(document, indent=2) + "\n" if options.json else render_text(document))
    return 0


def _authorization(token_file: str | None) -> dict[str, str]:
    """Raises `OSError` if the file cannot be read."""
    if token_file is None:
        return {}
    return {"authorization": f"Bearer {Path(token_file).read_text(encoding='ascii', errors='replace').strip()}"}


def render_text(document: dict[str, Any]) -> str:
    """The document as a few sentences and a table."""
    target, algorithm, outcome = document["target"], document["algorithm"], document["outcome"]
    scope = f" under routing key {target['routing_key']!r}" if target["routing_key"] else ""
    lines = [f"{target['model']!r}{scope}, decided by {algorithm['name']}"]
    if algorithm["comparator"]:
        lines[0] += f" (comparator {algorithm['comparator']})"
    if algorithm["expression"]:
        lines.append(f"expression in force: {algorithm['expression']}")
    if "admission" in document:
        admission = document["admission"]
        lines.append(f"admission: {admission['seconds']} s of work, limit {admission['limit_seconds']} s")
    if "affinity" in document:
        lines.append(_affinity_line(document["affinity"]))
    rows = document["candidates"]
    columns = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
    table = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    if not rows:
        lines.append("no candidates")
    if outcome["kind"] == "chosen":
        depth = f", rank {outcome['rank_depth']}" if outcome["rank_depth"] > 1 else ""
        lines.append(f"=> {outcome['cluster_id']}{depth}")
    else:
        answers = {
            "not_found": "404: nobody serves this target",
            "unavailable": "503: nobody can be asked",
            "rejected": f"503: {outcome.get('reason')}",
            "wait": "wait: nobody acceptable yet",
        }
        if "wait_ms" in outcome:
            answers["wait"] = (
                f"wait: by its age alone the request gets another answer in {_cell(outcome['wait_ms'])} ms"
            )
        lines.append(f"=> {answers[outcome['kind']]}")
    return "\n".join(lines) + "\n"


def _affinity_line(affinity: dict[str, Any]) -> str:
    line = f"affinity group: {', '.join(affinity['group'])}; asked alone for {affinity['wait_ms']} ms"
    if affinity["input_tokens_scale"] != 1.0:
        line += f", {affinity['input_tokens_scale']:.6g} of the prompt counts there"
    if "open_clusters" in affinity:
        line += f"; {affinity['open_clusters']} of the ranking open now"
        if affinity["next_band_in_ms"] is not None:
            line += f", the next band in {_cell(affinity['next_band_in_ms'])} ms"
    return line


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m router explain",
        description="Ask a running router how it would route a request right now. Asking changes nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--address", default="127.0.0.1:9090", help="metrics port of the router (default: %(default)s)")
    add(
        "--token-file",
        metavar="PATH",
        help="file with the token of --operators-token-file, for a router on another host",
    )
    add("--model", required=True, help="the model that is asked for")
    add("--routing-key", help="the tenant the request is scoped to")
    add("--method", help="algorithm or expression, as in the header x-routing-method")
    add("--input-tokens", type=int, help="prompt tokens of the request")
    add("--priority", type=int, help="lower is more urgent")
    add("--affinity-key", help="cache affinity key")
    add("--request-slo-ms", type=int, help="SLO of the request")
    add("--elapsed-ms", type=int, help="pretend that the request has waited this long")
    add(
        "--exclude", action="append", default=[], metavar="CLUSTER", help="pretend that this cluster has failed already"
    )
    add("--json", action="store_true", help="print the document as the router gave it")
    return parser
