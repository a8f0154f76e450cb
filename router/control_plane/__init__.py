"""gRPC services for workers and gateways, worker authentication, router discovery (docs/control-plane.md)."""
