#!/bin/sh
# Build the image streamferry-lab. Unchanged inputs come from Docker's cache, in a second.
#
# The base is Debian forky, pulled where that works and else made with debootstrap from the mirror
# this machine uses itself (or LAB_MIRROR).
set -eu
cd "$(dirname "$0")"
BASE=streamferry-lab-base
RELEASE=forky

mirror() {
    [ -n "${LAB_MIRROR:-}" ] && { echo "$LAB_MIRROR"; return; }
    . /etc/os-release
    [ "${ID:-}" = debian ] || return 0  # debootstrap has a default of its own
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
        sed -n 's/^deb  *\(\[[^]]*\]  *\)\{0,1\}\([a-z]*:[^ ]*debian\/\{0,1\}\) .*/\2/p' | head -1
    sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -1
}

make_base() {
    if timeout 60 docker pull -q "debian:$RELEASE" >/dev/null 2>&1; then
        docker tag "debian:$RELEASE" "$BASE"
        return
    fi
    echo "Making the base image with debootstrap (about a minute)"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    # shellcheck disable=SC2046
    debootstrap --variant=minbase "$RELEASE" "$work/root" $(mirror | head -1) \
        /usr/share/debootstrap/scripts/sid >"$work/log" 2>&1 || {
        tail -20 "$work/log" >&2
        echo "make lab: debootstrap failed; name another mirror with LAB_MIRROR" >&2
        exit 1
    }
    tar -C "$work/root" -c . | docker import - "$BASE" >/dev/null
}

build() {
    proxies=""
    for name in http_proxy https_proxy no_proxy; do
        eval "value=\${$name:-}"
        [ -z "$value" ] || proxies="$proxies --build-arg $name=$value"
    done
    # shellcheck disable=SC2086
    docker build -q --network host --build-arg "BASE=$BASE" $proxies -t streamferry-lab . \
        >"$1" 2>&1
}

docker image inspect "$BASE" >/dev/null 2>&1 || make_base
docker image inspect streamferry-lab >/dev/null 2>&1 || echo "Building the lab's image"
log=$(mktemp)
if ! DOCKER_BUILDKIT=0 build "$log"; then
    tail -20 "$log" >&2
    rm -f "$log"
    echo "make lab: the image could not be built" >&2
    exit 1
fi
rm -f "$log"
