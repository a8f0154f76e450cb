"""QUIC tunnels with inference servers: accepting and dialing them, keeping them measured, running exchanges on them.

Implements the ports `router.ports.tunnels` and `router.ports.registration_tunnels`; see
docs/protocol.md, "Connection sets" and "Reverse handshake".
"""
