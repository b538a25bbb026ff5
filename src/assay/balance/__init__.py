"""What is done about classes of which there are few."""
