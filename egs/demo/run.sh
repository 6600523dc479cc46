#!/usr/bin/env bash
# From nothing to a word error rate: makes the environment on first use, then runs the demo recipe.
# Options go to the recipe; --help lists them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/.ci/make_env.sh"
export PATH="$root/.venv/bin:$PATH"
cd "$root/egs/demo/asr1"
exec ./run.sh "$@"
