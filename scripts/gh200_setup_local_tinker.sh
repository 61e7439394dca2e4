#!/bin/sh
# A virtual environment for Tinsmith on a machine with a CUDA torch of its own, such as a GH200.
#
# With a system Python of 3.11 or newer the venv sees the system's torch and installs everything
# else. With an older one, or where the system has no torch, it is made of a newer Python, with a
# CUDA torch from the package index that you name. Running it again changes only what is not so yet.
set -eu

usage() {
    cat <<EOF
usage: scripts/gh200_setup_local_tinker.sh [options]
  --venv DIR            where the venv goes                       (.venvs/gh200)
  --system-python PROG  the Python that has the system's torch
                        (\$TINSMITH_SYSTEM_PYTHON, or /usr/bin/python3)
  --python PROG         a Python of 3.11 or newer, for a venv with a torch of its own
                        (\$TINSMITH_PYTHON, or python3.11 to python3.14 of the path)
  --torch-index URL     the package index with CUDA builds of torch for that venv
                        (\$TINSMITH_TORCH_INDEX)
  --without-gpu         do not initialise CUDA: for building an image on another machine
  --dry-run             print what was found and what would be done, and change nothing
EOF
}

fail() {
    echo "error: $*" >&2
    exit 2
}

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venvs/gh200 system_python=${TINSMITH_SYSTEM_PYTHON:-/usr/bin/python3}
newer_python=${TINSMITH_PYTHON:-} index=${TINSMITH_TORCH_INDEX:-} check=--check is_dry=
while test $# -gt 0; do
    case $1 in
        --venv | --system-python | --python | --torch-index)
            test $# -gt 1 || fail "$1 needs a value"
            case $1 in
                --venv) venv=$2 ;;
                --system-python) system_python=$2 ;;
                --python) newer_python=$2 ;;
                --torch-index) index=$2 ;;
            esac
            shift 2
            ;;
        --without-gpu) check="--check --without-gpu" && shift ;;
        --dry-run) is_dry=yes && shift ;;
        -h | --help) usage && exit ;;
        *) usage >&2 && fail "$1 is not an option" ;;
    esac
done

run() {
    echo "+ $*"
    test -n "$is_dry" || "$@"
}

is_new_enough() {
    "$1" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null
}

find_newer_python() {
    for python in ${newer_python:-python3.14 python3.13 python3.12 python3.11}; do
        is_new_enough "$python" && command -v "$python" && return
    done
    return 1
}

pins=$root/envs/engine.txt
report=$root/scripts/torch_report.py
echo "== Found"
test -x "$(command -v "$system_python")" || fail "there is no $system_python; name the Python that has the system's torch with --system-python"
"$system_python" "$report"
version=$("$system_python" -c "import platform; print(platform.python_version())")
torch=$("$system_python" -c "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')")

echo "== Decided"
if is_new_enough "$system_python" && test -n "$torch" && test -z "$index"; then
    echo "a venv over $system_python $version, with the torch of $torch"
    # shellcheck disable=SC2086  # one word an option
    "$system_python" "$report" $check >/dev/null || fail "the system's torch will not do: see above. With --torch-index URL the venv gets a CUDA torch of its own"
    python=$system_python site=--system-site-packages
else
    reason="has no torch"
    test -z "$torch" || reason="is asked to leave its torch alone"
    is_new_enough "$system_python" || reason="is older than the 3.11 that the Tinker SDK needs"
    test -n "$index" || fail "$system_python $version $reason: name a package index that has a CUDA torch for $(uname -m) with --torch-index URL"
    python=$(find_newer_python) || fail "${newer_python:-none of python3.11 to python3.14} is no Python of 3.11 or newer, and $system_python $version $reason: install one and name it with --python"
    echo "a venv of $python with a CUDA torch of its own, because $system_python $version $reason"
    torch= site=
fi

echo "== Doing"
run rm -f "$venv/torch.json"
# shellcheck disable=SC2086  # no word or one
run "$python" -m venv $site "$venv"
pip() {
    run "$venv/bin/python" -m pip --disable-pip-version-check install "$@"
}
# Images of PyTorch constrain pip to the versions that they came with.
export PIP_CONSTRAINT=
# The list is complete, so that no package's own wishes can bring another torch.
if test -z "$is_dry"; then
    grep -v '^torch==' "$pins" > "$venv/requirements.txt"
fi
pip --no-deps --requirement "$venv/requirements.txt"
if test -z "$torch"; then
    # By environment, because an address may hold a password; from there and from nowhere else.
    (
        export PIP_INDEX_URL="$index" PIP_EXTRA_INDEX_URL='' PIP_FIND_LINKS=''
        pip "$(grep '^torch==' "$pins")" --constraint "$pins"
    )
fi
if test -e "$root/pyproject.toml"; then
    pip --no-deps --no-build-isolation --editable "$root"
fi
test -z "$is_dry" || exit 0

echo "== Checked"
# shellcheck disable=SC2086  # one word an option
"$venv/bin/python" "$report" $check --system-torch "$torch" --json "$venv/torch.json"
echo "Ready: . $venv/bin/activate"
