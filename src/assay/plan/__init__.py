"""Plans: parsing, checks, overrides, defaults and recipes."""
