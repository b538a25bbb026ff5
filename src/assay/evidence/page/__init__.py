"""The parts of the report: each takes what a run left and gives what a template shows."""
