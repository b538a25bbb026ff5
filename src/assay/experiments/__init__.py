"""Many runs: ablations, comparisons, searches, the learning-rate finder, dry runs, the demo."""
