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
content "${POSITIONAL[0]}" "${POSITIONAL[1]}"
