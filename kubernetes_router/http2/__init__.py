"""HTTP/2 (RFC 9113) connections of both roles on asyncio, over the `h2` library."""
