"""Public helpers for tests: named cases whose truth is known."""
