"""Largest unsigned integers in headers, heartbeats and configuration; larger values are refused or clamped."""

from typing import Final

MAX_U32: Final = 2**32 - 1
MAX_U64: Final = 2**64 - 1
