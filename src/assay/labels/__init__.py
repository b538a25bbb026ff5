"""Labels: heads, the table of samples, splits, edits and the ledger."""
