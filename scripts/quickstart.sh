#!/usr/bin/env bash
# Sets up and runs the main job: four training regimes on real digits, explained each epoch, one report.
# A second call reuses the environment and skips the runs that are finished.
set -euo pipefail
. "$(dirname "$0")/environment.sh" quickstart
exec lit-xai study run configs/studies/quickstart.yaml
