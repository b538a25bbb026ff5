"""The others: each module is a command that trains once and prints one line of JSON."""
