"""The commands, one file each. Heavy imports are made inside them."""
