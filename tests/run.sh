#!/usr/bin/env bash
# All checks: ruff, shellcheck and the tests; makes the environment on first use.
# Options go to pytest, such as -k NAME.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/.ci/make_env.sh"
export PATH="$root/.venv/bin:$PATH"
cd "$root"
ruff check .
ruff format --check .
git ls-files -z --cached --others --exclude-standard '*.sh' .ci/run | xargs -0 shellcheck
# One thread a process: the processes already fill the cores.
OMP_NUM_THREADS=1 exec pytest --numprocesses auto "$@"
