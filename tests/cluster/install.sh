#!/bin/sh
# What tests/cluster needs of the system: SLURM, and nginx for TLS. On Debian or Ubuntu, as root;
# elsewhere those tests skip and say why.
set -eu
command -v slurmctld > /dev/null && command -v munged > /dev/null && command -v nginx > /dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "tests/cluster/install.sh: not root on Debian or Ubuntu, SLURM is not installed" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge nginx-light > /dev/null
