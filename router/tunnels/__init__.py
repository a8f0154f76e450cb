"""QUIC tunnels with inference servers: accepting and dialing them, keeping them measured, running exchanges on them.

Implements the `TunnelSet` port of `router.registry` and the `WorkerTunnels` port of `router.control_plane`; see
docs/protocol.md, "Connection sets" and "Reverse handshake".
"""
