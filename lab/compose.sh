#!/bin/sh
# docker compose with the lab's file, under one project name for all clones.
set -eu
file=$(dirname "$0")/../docker-compose.yml
if docker compose version >/dev/null 2>&1; then
    exec docker compose -p streamferry-lab -f "$file" "$@"
fi
exec docker-compose -p streamferry-lab -f "$file" "$@"
