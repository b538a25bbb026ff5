"""What is known of the pictures."""
