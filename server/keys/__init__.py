"""API keys: where they are kept, what they are, and who holds one."""
