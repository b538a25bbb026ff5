"""The loop and all it needs."""
