#!/bin/sh
# Build the image streamferry-lab when its inputs changed.
#
# The base is Debian forky, pulled where that works and else made with debootstrap from the mirror
# this machine uses itself (or LAB_MIRROR), through apt's own proxies.
set -eu
cd "$(dirname "$0")"
BASE=streamferry-lab-base
RELEASE=forky
INPUTS="Dockerfile sshd_config start-high entrypoint"

id() { docker image inspect -f '{{.Id}}' "$1" 2>/dev/null || true; }

proxies() {  # apt's, where the environment names none
    for scheme in http https; do
        eval "[ -z \"\${${scheme}_proxy:-}\" ]" || continue
        value=""
        eval "$(apt-config shell value "Acquire::$scheme::Proxy" 2>/dev/null)"
        case "$value" in ""|DIRECT) ;; *) export "${scheme}_proxy=$value" ;; esac
    done
}

mirror() {  # the first of apt's sources that has the release; none: debootstrap has a default
    if [ -n "${LAB_MIRROR:-}" ]; then
        echo "$LAB_MIRROR"
        return
    fi
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | sort -u |
        grep -E '^(https?|file):' | while read -r uri; do
            /usr/lib/apt/apt-helper -qq -o Acquire::http::Timeout=10 download-file \
                "${uri%/}/dists/$RELEASE/Release" "$1/Release" >/dev/null 2>&1 || continue
            echo "$uri"
            break
        done
}

pull_base() {
    timeout 60 docker pull -q "debian:$RELEASE" >/dev/null 2>&1 || return 1
    docker tag "debian:$RELEASE" "$BASE"
}

make_base() {
    echo "Making the base image with debootstrap (about a minute)"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    from=$(mirror "$work")
    debootstrap --variant=minbase "$RELEASE" "$work/root" "$from" \
        /usr/share/debootstrap/scripts/sid >"$work/log" 2>&1 || {
        tail -20 "$work/log" >&2
        echo "make lab: debootstrap failed; name another mirror with LAB_MIRROR" >&2
        exit 1
    }
    if [ -f /etc/ssl/certs/ca-certificates.crt ]; then  # a mirror may need this machine's
        mkdir -p "$work/root/etc/ssl/certs"
        cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
    fi
    tar -C "$work/root" -c . | docker import - "$BASE" >/dev/null
}

build() {
    arguments="--build-arg BASE=$BASE"
    for name in http_proxy https_proxy no_proxy; do
        eval "value=\${$name:-}"
        [ -z "$value" ] || arguments="$arguments --build-arg $name=$value"
    done
    # shellcheck disable=SC2086
    DOCKER_BUILDKIT=0 docker build -q --network host $arguments \
        -t "$tag" -t streamferry-lab . 2>&1 | tail -20
}

# By content: Docker's cache goes by the files' modes, too, and those differ between clones.
# shellcheck disable=SC2086
tag=streamferry-lab:$(cat $INPUTS | sha256sum | cut -c 1-12)
if [ -n "$(id "$tag")" ]; then
    docker tag "$tag" streamferry-lab
    exit 0
fi
proxies
[ -n "$(id "$BASE")" ] || pull_base || make_base
echo "Building the lab's image"
log=$(build)
if [ -z "$(id "$tag")" ] && [ "$(id "$BASE")" = "$(id "debian:$RELEASE")" ]; then
    make_base  # the pulled one's own sources may be out of reach from here
    log=$(build)
fi
if [ -z "$(id "$tag")" ]; then
    echo "$log" >&2
    echo "make lab: the image could not be built" >&2
    exit 1
fi
