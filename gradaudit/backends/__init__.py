"""One folder per framework, the same names in each; `registry` finds them without importing any framework."""
