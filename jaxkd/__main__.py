"""`jaxkd` and `python -m jaxkd`: says what to install if the command line's dependencies are missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line."""
    try:
        from jaxkd.cli import main as run
    except ImportError as error:
        sys.exit(f"jaxkd: {error}")
    run()


if __name__ == "__main__":
    main()
