"""`stargate-k8s-router`: one address for all workers in front of several routers in Kubernetes."""
