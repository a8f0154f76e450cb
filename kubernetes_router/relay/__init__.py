"""Relays QUIC tunnels to the routers that their TLS server names name, without ending their TLS."""
