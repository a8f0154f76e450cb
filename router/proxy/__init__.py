"""One client request: validation, routing, attempts and retries, the answer (docs/proxy.md)."""
