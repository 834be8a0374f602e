#!/usr/bin/env bash
# Are the nodes of this job fit to train together? `srun bash launch/preflight.sh [--bad-hosts OUT] FILE [key=value ...]`
#
# One task a rank, as for launch/node.sh. A table names what is wrong, at the latest after a minute; the exit code is 0
# when the job can start and 2 when not. OUT then holds the hosts to leave out, separated by commas.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec bash "$here/node.sh" --preflight "$@"
