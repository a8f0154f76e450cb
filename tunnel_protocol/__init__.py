"""The protocol between router and worker, both roles: messages, framings, handshake, control-plane stubs, QUIC."""

from tunnel_protocol import compilation as compilation  # before any other module, see there
