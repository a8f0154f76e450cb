"""Handshakes by aioquic, and their end. Only this package uses private attributes of aioquic.

tests/unit/test_quic_aioquic_internals.py lists these attributes and checks that they exist; the version of aioquic is pinned.
"""

from tunnel_protocol.quic.aioquic_handshake.factory import AioquicFactory

__all__ = ["AioquicFactory"]
