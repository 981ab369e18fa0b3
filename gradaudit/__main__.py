"""``gradaudit`` and ``python -m gradaudit``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without its extra, say how to install it and exit with 2."""
    try:
        from gradaudit.cli.main import cli
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.stderr.write(f"the command line needs {error.name}, which is not installed\n")
        sys.stderr.write("\nHint: pip install 'gradaudit[cli]'\n")
        sys.exit(2)
    cli()


if __name__ == "__main__":
    main()
