"""The wire between router and worker, both roles: codec, framings, handshake, control-plane messages, QUIC."""
