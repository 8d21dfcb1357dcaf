#!/usr/bin/env bash
# Lint, format and types.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
make_environment
cd "$ROOT"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
