#!/bin/sh
# Install what the lab and the tests need from the distribution; nothing when it is all there.
set -eu

need() {  # need PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

missing=""
need dockerd docker.io
docker compose version >/dev/null 2>&1 || need docker-compose docker-compose
need docker docker.io
need iptables iptables
need debootstrap debootstrap
need ssh openssh-client
need nft nftables
need ip iproute2
need ping iputils-ping
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "make lab: install these by hand, there is no apt-get here:$missing" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "make lab: run it as root, or install:$missing" >&2
    exit 1
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt="apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0"
$apt update
# shellcheck disable=SC2086
$apt install -y --no-install-recommends $missing >/dev/null
