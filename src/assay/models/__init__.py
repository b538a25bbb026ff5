"""Networks, their weights, and how they are kept."""
