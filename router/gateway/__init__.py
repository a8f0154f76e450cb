"""HTTP in, HTTP out: the listener, the routes, and what becomes of one client request (docs/gateway.md)."""
