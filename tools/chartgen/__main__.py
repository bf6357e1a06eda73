"""``python -m chartgen`` writes the chart's generated files; with ``--check`` it only says which are out of date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from chartgen.files import ROOT, drift, write
from chartgen.values import ValuesError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m chartgen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    options = parser.parse_args(arguments)
    try:
        changed = drift() if options.check else write()
    except ValuesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in changed:
        print(f"{'out of date' if options.check else 'wrote'}: {path.relative_to(ROOT)}")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
