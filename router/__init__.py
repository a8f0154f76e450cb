"""The router process: HTTP requests in, QUIC tunnels out. See docs/architecture.md for the rooms and who may import whom."""

import tunnel_protocol as tunnel_protocol  # first: decides whether compiled modules are used
