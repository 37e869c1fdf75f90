"""Runs to read: charts of a run's log, and the page that shows them."""
