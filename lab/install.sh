#!/bin/sh
# Install what the lab and the tests need from the distribution; nothing when it is all there.
set -eu

need() {  # need PROGRAM PACKAGE; A|B: the first that this release has
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

known() { apt-cache show "$1" >/dev/null 2>&1; }

missing=""
need dockerd docker.io
need docker 'docker-cli|docker.io'  # a package of its own from Debian 13 on
docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1 ||
    missing="$missing docker-compose-v2|docker-compose"  # 1.29 does not run on Ubuntu 24.04
need iptables iptables
need debootstrap debootstrap
need ssh openssh-client
need nft nftables
need ip iproute2
need ping iputils-ping
need rsync rsync
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing="$missing debian-archive-keyring"
[ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" != Y ] ||
    need apparmor_parser apparmor  # without it Docker starts no container on such a kernel
[ -e /usr/include/linux/tcp.h ] || missing="$missing linux-libc-dev"  # the tests compare with it
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
export DEBIAN_FRONTEND=noninteractive
apt="apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3"
$apt update
chosen=""
for item in $missing; do
    if [ "$item" != "${item%|*}" ] && ! known "${item%|*}"; then
        item=${item#*|}
    fi
    chosen="$chosen ${item%|*}"
done
echo "Installing:$chosen"
# shellcheck disable=SC2086
$apt install -y --no-install-recommends $chosen >/dev/null || {
    echo "make lab: apt-get could not install:$chosen" >&2
    exit 1
}
