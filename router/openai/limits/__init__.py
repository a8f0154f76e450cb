"""Limits of requests, tokens and running requests by key and model (docs/openai-keys.md, "Limits")."""
