"""gRPC services for workers and gateways, worker authentication, discovery of routers (docs/control-plane.md)."""
