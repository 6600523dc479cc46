"""Make an experiment safe to resume: ``python -m espnet_lmu.training.resume EXPDIR`` (does nothing to a new one)."""

from __future__ import annotations

import argparse
import sys

from espnet_lmu.errors import UserError
from espnet_lmu.training.checkpoint import repair


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.training.resume", description=__doc__)
    parser.add_argument("directory", help="experiment folder (--output_dir of asr_train)")
    args = parser.parse_args()
    try:
        for line in repair(args.directory):
            print(line)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
