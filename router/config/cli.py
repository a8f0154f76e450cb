"""The router's command line: the options of `Settings` and the introduction of `--help`."""

from collections.abc import Mapping
from typing import Final

from router.config.command_line import CommandLine, HelpRequested, UsageError, VersionRequested
from router.config.settings import Settings

__all__ = ["COMMAND_LINE", "HelpRequested", "UsageError", "VersionRequested", "help_text", "parse", "settings_or_exit"]


def _knows_version(given: Mapping[str, list[str]], environment: Mapping[str, str]) -> bool:
    """Releases of the 0.11 line have no `--version`."""
    release = given["--compat"][0] if "--compat" in given else environment.get("STARGATE_COMPAT")
    return release != "0.11"


COMMAND_LINE: Final = CommandLine(
    Settings,
    "stargate",
    about="Routes OpenAI-style requests from an API gateway to GPU workers through QUIC tunnels.",
    introduction=(
        "A worker dials in (or is dialled), registers its models over gRPC, and every request becomes one stream on its tunnel.",
        "The smallest useful start, on one machine, with workers dialling in:",
        "",
        "  stargate --stargate-id r0 --advertise-addr 127.0.0.1:50071 --stargate-discovery-dns-name localhost \\",
        "      --disable-dns-discovery --backend-connectivity=reverse --reverse-tunnel-listen-addr 0.0.0.0:50072 \\",
        "      --advertised-hostname-template 127.0.0.1 --quic-insecure",
    ),
    knows_version=_knows_version,
)
"""Parses the arguments of `stargate`."""

parse = COMMAND_LINE.parse
settings_or_exit = COMMAND_LINE.settings_or_exit
help_text = COMMAND_LINE.help_text
