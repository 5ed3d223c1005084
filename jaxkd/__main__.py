"""`jaxkd` and `python -m jaxkd`: names the packages to install if dependencies are missing."""

from __future__ import annotations

import sys

from jaxkd import __version__
from jaxkd.signals import exit_when_stopped


def main() -> None:
    """Runs the command line."""
    if sys.argv[1:] == ["--version"]:  # needs nothing that may be missing
        print(f"jaxkd {__version__}")
        return
    with exit_when_stopped():
        try:
            from jaxkd.cli import main as run
        except ImportError as error:
            sys.exit(f"jaxkd: {error}")
        run()


if __name__ == "__main__":
    main()
