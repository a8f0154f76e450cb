"""The worker side: registers an inference engine with routers and serves their requests over reverse tunnels."""
