"""Repairs of labels: label errors, pseudo-labels, rebalanced heads."""
