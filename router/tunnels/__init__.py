"""QUIC tunnels with inference servers: accepting and dialing them, probing their health, opening exchanges on them.

Implements the ports `router.ports.tunnels` and `router.ports.registration_tunnels`; see
docs/protocol.md, "Connection sets" and "Reverse handshake".
"""
