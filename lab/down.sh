#!/bin/sh
# Remove the lab's containers and network.
set -eu
here=$(dirname "$0")

if ! docker info >/dev/null 2>&1; then
    echo "No Docker Engine answers, so the lab is not up"
    exit 0
fi
"$here/compose.sh" down --remove-orphans
docker network rm streamferry-lab >/dev/null 2>&1 || true  # of the other generation of compose
echo "Removed. Its image, its keys and dockerd stay: docker rmi streamferry-lab streamferry-lab-base"
