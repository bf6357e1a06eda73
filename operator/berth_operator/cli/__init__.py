"""What can a person ask from a shell?  `berth`, also installed as `kubectl-berth`."""

from berth_operator.cli.app import main

__all__ = ["main"]
