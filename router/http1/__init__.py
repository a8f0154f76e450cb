"""HTTP/1.1 for clients: connections, requests, responses. A leaf: knows nothing else of the router."""
