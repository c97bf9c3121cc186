# Sourced by the other scripts: makes .venv once and installs the project with the extras given.
#   . scripts/environment.sh quickstart
# The exact versions that the tests passed with are in constraints.txt.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "lit_xai needs Python 3.11 or newer; found: $("$python" --version 2>&1). Set PYTHON to one." >&2
    exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv

for extra in "$@"; do
    # A stamp per extra: installed again only when what is asked for has changed.
    stamp=.venv/.installed-$extra
    state=$(cat pyproject.toml constraints.txt | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
        echo "installing lit_xai[$extra] into .venv: once, a few minutes ..."
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --constraint constraints.txt --editable ".[$extra]"
        echo "$state" >"$stamp"
    fi
done
export PATH="$PWD/.venv/bin:$PATH"
