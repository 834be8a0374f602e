#!/usr/bin/env bash
# How does this checkout get its environment? `bash launch/setup.sh` makes .venv, once: a second call finds the stamp
# of the first and returns at once. PYTHON=/path/to/python3.11 chooses the interpreter.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." # the checkout, however this script was reached

fail() {
    echo "setup: $1" >&2
    echo "  fix: $2" >&2
    exit 2
}

is_supported() { # a pyenv shim may be on PATH and still run nothing, so ask the interpreter itself
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

if [[ -n "${PYTHON:-}" ]]; then
    is_supported "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or 3.12" "name another interpreter"
    python=$PYTHON
else
    python=
    for candidate in python3 python3.12 python3.11; do
        if is_supported "$candidate"; then
            python=$candidate
            break
        fi
    done
    [[ -n "$python" ]] || fail "found no Python 3.11 or 3.12" "install one, or name it: PYTHON=/path/to/python3.11"
fi
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module" "install it (Debian, Ubuntu: apt-get install python3-venv)"

# Everything the environment depends on; this script too, since it says what is installed and built.
stamp=$(
    {
        "$python" -c 'import sys, platform; print(sys.version, platform.machine())'
        cat launch/constraints.txt pyproject.toml launch/setup.sh
        pwd # a virtual environment does not survive being moved
    } | sha256sum | cut -d' ' -f1
)
if [[ -f .venv/stamp && "$(cat .venv/stamp)" == "$stamp" ]]; then
    exit 0
fi

# Two setups at once would each find the other's half-made environment.
exec 9>.setup.lock
flock 9
if [[ -f .venv/stamp && "$(cat .venv/stamp)" == "$stamp" ]]; then
    exit 0
fi

echo "setup: .venv with $("$python" --version) (some minutes, once)"
rm -f .venv/stamp # what is half made must not look made
version=$("$python" -c 'import sys; print(sys.version.split()[0])')
if ! { grep -qsF -- "-m venv $PWD/.venv" .venv/pyvenv.cfg && grep -qsxF "version = $version" .venv/pyvenv.cfg; }; then
    rm -rf .venv # another interpreter's, or moved here from elsewhere
    "$python" -m venv .venv
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint launch/constraints.txt)

# 1. torch alone and by its exact version: as somebody's dependency pip would take the newest, gigabytes of it.
"${pip[@]}" "$(grep '^torch==' launch/constraints.txt)"
# 2. What building needs. DeepSpeed and this package build without pip's isolation: an isolated build environment
#    heeds no constraints, and DeepSpeed's would fetch a second torch.
"${pip[@]}" setuptools wheel ninja packaging psutil py-cpuinfo hatchling editables numpy
# 3. DeepSpeed compiles nothing, now (DS_BUILD_OPS=0) or later: the optimizer is torch's AdamW, and the one operator
#    that it would compile at its first start on a CPU is never used (engine/deepspeed.py).
DS_BUILD_OPS=0 "${pip[@]}" --no-build-isolation "$(grep '^deepspeed==' launch/constraints.txt)"
# 4. megadistill, editable, with what the tests need.
"${pip[@]}" --no-build-isolation --editable ".[dev]"

echo "$stamp" >.venv/stamp
echo "setup: done"
