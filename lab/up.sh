#!/bin/sh
# Bring the lab up, from whatever state: nothing installed, a killed dockerd, or all running.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
KEYS=/var/lib/streamferry-lab

if [ -z "${LAB_LOCKED:-}" ]; then
    [ "$(id -u)" = 0 ] || { echo "make lab: run it as root" >&2; exit 1; }
    mkdir -p "$KEYS"
    # One at a time; -o, or a dockerd started below would hold the lock for ever.
    LAB_LOCKED=1 exec flock -o -w 900 "$KEYS" "$0" "$@"
fi

"$here/install.sh"
"$here/dockerd.sh"
"$here/keys.sh"
"$here/image.sh"
"$here/compose.sh" up -d --remove-orphans >/dev/null 2>&1 || {
    # Containers and networks of a killed daemon, or of the other generation of compose, may be
    # half there or labelled otherwise: make them anew.
    echo "Making the lab's containers and network anew"
    "$here/compose.sh" down --remove-orphans >/dev/null 2>&1 || true
    docker rm -f src dst spare client >/dev/null 2>&1 || true
    docker network rm streamferry-lab >/dev/null 2>&1 || true
    "$here/compose.sh" up -d --remove-orphans
}
for host in src dst spare; do
    for attempt in $(seq 150); do
        ssh -F "$here/ssh_config" -o ConnectTimeout=2 "$host" true 2>/dev/null && break
        if [ "$attempt" = 150 ]; then
            echo "make lab: $host does not answer: ssh -v -F lab/ssh_config $host" >&2
            exit 1
        fi
        sleep 0.2
    done
done
echo "The lab is up: src 10.77.0.11, dst 10.77.0.12, spare 10.77.0.14, client 10.77.0.13"
