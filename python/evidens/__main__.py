"""``python -m evidens``: info, tour, bench."""

from __future__ import annotations

import argparse
import json
import sys


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    # The rest of the line belongs to the command, which brings its own --help.
    if argv[:1] == ["tour"]:
        from evidens import tour

        return tour.main(argv[1:]) or 0
    if argv[:1] == ["bench"]:
        from evidens.bench import cli

        return cli.main(argv[1:]) or 0
    parser = argparse.ArgumentParser(prog="python -m evidens", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="versions, instruction set, threads, ops by backend")
    info.add_argument("--json", action="store_true", help="machine-readable, for bug reports")
    commands.add_parser("tour", help="fit every family on digits and write evidens-tour.html")
    commands.add_parser("bench", help="evidens beside what you use today, on this machine")
    arguments = parser.parse_args(argv)
    import evidens

    facts = evidens.info()
    print(json.dumps(facts, indent=2) if arguments.json else facts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
