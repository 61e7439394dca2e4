#!/bin/sh
# install_debian.sh: install the packages of envs/debian.txt that are missing; needs root.
set -eu
packages=$(sed 's/#.*//' "$(dirname "$0")/debian.txt")
missing=
for package in $packages; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed \
        || missing="$missing $package"
done
test -z "$missing" && exit
echo "Installing$missing ..." >&2
apt-get -qq -o Acquire::Retries=3 update
# shellcheck disable=SC2086  # one word a package
DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 install --yes --no-install-recommends $missing
