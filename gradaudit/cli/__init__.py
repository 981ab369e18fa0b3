"""The command line; needs the extra ``cli`` (click and rich)."""
