"""gRPC for servers: calls over HTTP/2 (RFC 9113), without a thread and with one write per message."""
