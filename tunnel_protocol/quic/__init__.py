"""QUIC made fit for thousands of streams on one connection: engine, endpoint, streams."""
