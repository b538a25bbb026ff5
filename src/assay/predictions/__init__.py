"""What a model says of pictures."""
