"""Objects of the Kubernetes API as JSON documents."""

from typing import Any


def endpoint(pod_name: str, *addresses: str, ready: bool = True, terminating: bool = False) -> dict[str, Any]:
    """An endpoint of a Service that publishes addresses which are not ready."""
    return {
        "addresses": list(addresses),
        "conditions": {"ready": ready, "serving": ready, "terminating": terminating},
        "hostname": "-".join(addresses[0].split(".")) if addresses else None,
        "nodeName": "node-1",
        "targetRef": {"kind": "Pod", "name": pod_name, "namespace": "nvcf", "uid": "0"},
    }


def endpoint_slice(
    name: str,
    *endpoints: dict[str, Any],
    service: str = "routers",
    grpc_port: int = 50071,
    quic_port: int = 50072,
) -> dict[str, Any]:
    """An EndpointSlice with the ports of the chart."""
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "namespace": "nvcf", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [
            {"name": "grpc", "port": grpc_port, "protocol": "TCP"},
            {"name": "quic", "port": quic_port, "protocol": "UDP"},
        ],
    }
