"""API keys of the front: their format, the file, rights, the command, and the check by NVCF (docs/openai-keys.md)."""
