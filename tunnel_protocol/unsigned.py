"""The largest unsigned integers of the protocol: of headers, heartbeats and configuration. Beyond them values are refused or clamped."""

MAX_U32 = 2**32 - 1
MAX_U64 = 2**64 - 1
