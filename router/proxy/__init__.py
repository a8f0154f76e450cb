"""Handles one client request: validation, routing, attempts, retries and the response (docs/proxy.md)."""
