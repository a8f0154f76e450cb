"""QUIC for thousands of streams on one connection: UDP endpoint, protocol engine, streams."""
