#!/bin/sh
# Make the lab's SSH keys once; they live outside of any clone, so that all clones share one lab.
set -eu
KEYS=/var/lib/streamferry-lab

mkdir -p "$KEYS"
chmod 700 "$KEYS"
grep -qs '^src,dst,spare,' "$KEYS/known_hosts" && exit 0
rm -rf "${KEYS:?}"/*
mkdir -m 755 "$KEYS/host"  # mounted into the hosts, where a plain user's login reads it, too
ssh-keygen -q -t ed25519 -N "" -C streamferry-lab -f "$KEYS/id_ed25519"
ssh-keygen -q -t ed25519 -N "" -C streamferry-lab-host -f "$KEYS/host/ssh_host_ed25519_key"
cp "$KEYS/id_ed25519.pub" "$KEYS/host/authorized_keys"
sed 's/^/src,dst,spare,10.77.0.11,10.77.0.12,10.77.0.14 /' "$KEYS/host/ssh_host_ed25519_key.pub" \
    > "$KEYS/known_hosts.new"
mv "$KEYS/known_hosts.new" "$KEYS/known_hosts"
