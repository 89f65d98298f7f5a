"""`python -m runtime.verify`: verification without the compiler."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from runtime.verify.report import Reporter, summary, table
from runtime.verify.results import Status, to_json
from runtime.verify.run import TIME_LIMIT, requests_for, verify, write_results
from runtime.verify.switches import generated_families
from runtime.verify.targets import QEFF, TARGETS

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: everything passed or upstream refuses it; 1: something did not; 2: wrong arguments; 130:
    interrupted.
    """
    options = _parser().parse_args(arguments)
    target = TARGETS[options.target]
    families = generated_families(target.name) if options.all else options.families
    if not families:
        print("name at least one family, or --all for every generated one", file=sys.stderr)
        return USAGE
    stages = tuple(stage for stage in options.stages.split(",") if stage)
    try:
        total = len(requests_for(families, stages, options.cases, target=target))
    except ValueError as error:
        print(error, file=sys.stderr)
        return USAGE
    console = Console(stderr=options.json)
    try:
        with Reporter(console, total) as reporter:
            results = verify(
                families,
                stages,
                options.jobs,
                options.cases,
                options.seed,
                time_limit=options.time_limit,
                on_event=reporter,
                target=target,
            )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    if options.output:
        try:
            write_results(results, options.output)
        except OSError as error:
            print(f"cannot write {options.output}: {error.strerror or error}", file=sys.stderr)
            return FAILED
    if options.json:
        print(to_json(results), end="")
    else:
        console.print(table(results, stages, target))
    console.print(summary(results), highlight=False)
    fine = (Status.PASSED, Status.UPSTREAM_REFUSES)
    return OK if all(result.status in fine for result in results) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.verify", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="model types")
    parser.add_argument("--all", action="store_true", help="every generated family")
    parser.add_argument(
        "--target", choices=sorted(TARGETS), default=QEFF.name, help="which variants (default: %(default)s)"
    )
    stages = "; ".join(f"{','.join(target.stages)} of {target.name}" for target in TARGETS.values())
    parser.add_argument("--stages", default="", help=f"any of {stages} (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel processes")
    parser.add_argument("--cases", nargs="+", default=(), metavar="CASE", help="only these cases, such as default")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and prompts")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, metavar="S", help="seconds per family")
    parser.add_argument("--json", action="store_true", help="results as JSON on standard output")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
