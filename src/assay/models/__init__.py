"""Networks, their weights, and trained models on disk."""
