#!/usr/bin/env bash
# Stage 1 of the demo recipe: the corpus is made, not fetched. Options: --seed, --scale, --nj (--help lists them).
set -euo pipefail
"${python:-python3}" -m espnet_lmu.data.demo_corpus --audio downloads/demo --output data "$@"
