"""What is done about labels that are missing or wrong."""
