"""The router process: HTTP requests in, QUIC tunnels out. See docs/architecture.md for its packages and which may import which."""

import tunnel_protocol as tunnel_protocol  # first: decides whether compiled modules are used
