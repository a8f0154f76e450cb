"""gRPC messages and stubs of the control plane, generated from the `.proto` files beside them (`make proto`)."""
