#!/bin/sh
# install.sh PYTHON REQUIREMENTS: install pinned packages, and on failure name the one that failed.
# REQUIREMENTS may say how, in a line "# pip install OPTIONS: why".
set -u
python=$1 requirements=$2
record=$(dirname "$(dirname "$python")")/install.log
options=$(sed -n 's/^# pip install \([^:]*\):.*/\1/p' "$requirements")

install() {
    : > "$record"
    # shellcheck disable=SC2086  # several options
    "$python" -m pip install --disable-pip-version-check --log "$record" $options "$@" && return
    package=$(grep -oE "(Collecting|Building wheel for|Failed to build|requirement) [A-Za-z0-9_.-]+(==[^ ;)]+)?" "$record" \
        | tail -n 1 | awk '{print $NF}')
    echo "error: pip could not install ${package:-a package} of $requirements; pip says why above" \
        "(all of it: $record). Once that is mended, run the same command again." >&2
    exit 1
}

echo "Installing $requirements into $(dirname "$(dirname "$python")") ..." >&2
torch=$(grep '^torch==' "$requirements") && install "$torch" --constraint "$requirements"
install --requirement "$requirements"
