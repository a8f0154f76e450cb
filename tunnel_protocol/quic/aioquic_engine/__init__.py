"""The QUIC engine on aioquic. This package, and nothing else, touches private parts of aioquic.

Which ones, and that they are still there, is checked by tests/unit/test_quic_aioquic_internals.py; aioquic is pinned.
"""

from tunnel_protocol.quic.aioquic_engine.factory import AioquicFactory

__all__ = ["AioquicFactory"]
