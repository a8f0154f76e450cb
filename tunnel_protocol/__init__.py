"""The wire between router and worker, both roles: codec, framings, handshake, control-plane messages, QUIC."""

from tunnel_protocol import compilation as compilation  # before any other module, see there
