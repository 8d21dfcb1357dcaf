#!/usr/bin/env bash
# Install kdistill if needed and run it: the same arguments as `kdistill`; without any, `kdistill run`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
make_environment
exec "$VENV/bin/kdistill" "${@:-run}"
