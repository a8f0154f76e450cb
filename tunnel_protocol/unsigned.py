"""Largest unsigned integers in headers, heartbeats and configuration; larger values are refused or clamped."""

MAX_U32 = 2**32 - 1
MAX_U64 = 2**64 - 1
