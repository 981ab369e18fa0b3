"""What a truncation looks like from outside: which one it is, and how far back it reaches."""
