"""What leaves a run."""
