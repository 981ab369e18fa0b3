"""What is going on: rules over evidence. A rule is one function; `table.RULES` lists them in the order they run."""
