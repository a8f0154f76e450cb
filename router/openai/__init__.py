"""The OpenAI-compatible front: a listener for OpenAI clients, with keys, limits, token estimates and usage (docs/openai.md)."""
