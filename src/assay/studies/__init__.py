"""Many runs, held against one another."""
