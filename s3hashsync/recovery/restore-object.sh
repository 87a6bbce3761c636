#!/usr/bin/env bash
# Restores one content with stock tools alone: an object, or a member of a pack.

usage() {
  printf '%s\n' "usage: restore-object.sh [-i IDENTITY] HASH LOCATION > FILE" \
    "HASH and LOCATION as list-source.sh prints them. Compare the SHA-256 of what comes out with the one printed there."
}

. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
options "$@"
[ ${#POSITIONAL[@]} = 2 ] || { usage >&2; exit 2; }
open_repository
HASH=${POSITIONAL[0]} LOCATION=${POSITIONAL[1]}
hint=
[ "$ENCRYPTION" = off ] || hint=", and here the hash is not the SHA-256"
content "$HASH" "$LOCATION" ||
  die "no content $HASH at $LOCATION, or not a whole one: list-source.sh prints SHA-256, hash and location of each, in this order$hint"
