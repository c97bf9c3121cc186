#!/usr/bin/env bash
# Sets up and passes the tests. Arguments go to pytest: scripts/test.sh -m "not slow" for daily use.
set -euo pipefail
. "$(dirname "$0")/environment.sh" test
export OMP_NUM_THREADS=1
exec python -m pytest -n "${TEST_PROCESSES:-2}" "$@"
