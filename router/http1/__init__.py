"""HTTP/1.1 for clients: connections, requests, responses (RFC 9112). Imports no other package of the router."""
