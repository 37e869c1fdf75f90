"""Charts and pages of runs."""
