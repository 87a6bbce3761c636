#!/usr/bin/env bash
# Restores a source, or a part of it, with stock tools alone.

usage() {
  printf '%s\n' "usage: restore-source.sh [-i IDENTITY] [-a TIME] [-p PATH] [--unchecked] SOURCE TARGET" \
    "  -i FILE      age identity file (encrypted repositories; without it the passphrase is asked for)" \
    "  -a TIME      the state at that time, UTC: 20260131T020000Z" \
    "  -p PATH      only this path and what is below it" \
    "  --unchecked  do not check who wrote the run logs" \
    "TARGET is a folder that is empty or not there yet."
}

. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
options "$@"
[ ${#POSITIONAL[@]} = 2 ] || { usage >&2; exit 2; }
SOURCE=${POSITIONAL[0]}
mkdir -p -- "${POSITIONAL[1]}"
TARGET=$(cd -- "${POSITIONAL[1]}" && pwd -P)
[ -z "$(ls -A -- "$TARGET")" ] || die "$TARGET is not empty"
open_repository
read_logs "$SOURCE"

failed=0 files=0 other=0

# Sets `path`. A name may hold anything, also a line feed at its end, but may not lead out of the target.
path_of() {
  path=$(base64 -d <<< "$1"; printf x)
  path=${path%x}
  case /$path/ in
    */../* | */./* | *//*) note "refused: $path"; failed=$((failed + 1)); return 1 ;;
  esac
  path=$TARGET/$path
}

# Owner (for root alone), rights and time. What the file system refuses is said, and no reason to stop.
finish() {
  if [ "$EUID" = 0 ]; then chown -h -- "$1" "$path" || :; fi
  if [ $# = 3 ]; then
    chmod -- "$2" "$path" || :
    touch -d "@$3" -- "$path" || :
  fi
}

while read -r type name; do
  path_of "$name" || continue
  [ "$type" = dir ] || path=${path%/*}
  mkdir -p -- "$path"
done < <(jq -r 'select((.type == "dir" or .type == "symlink") and .path != "") | "\(.type) \(.path_b64 // (.path | @base64))"' state.jsonl)

while read -r location name hash sha256 size mode mtime owner; do
  path_of "$name" || continue
  mkdir -p -- "${path%/*}"
  right=yes
  if [ "$hash" = - ]; then
    : > "$path"
  else
    [ "$location" != - ] || location=$(place_of "$hash")
    unpack "$location" || right=no
    content "$hash" "$location" | head -c "$((size + 1))" > "$path" || right=no
    is_content "$hash" "$sha256" "$path" || right=no
  fi
  if [ "$right" = no ]; then
    note "damaged or missing: $path"
    rm -f -- "$path"
    failed=$((failed + 1))
    continue
  fi
  finish "$owner" "$mode" "$mtime"
  files=$((files + 1))
done < <(jq -r 'select(.type == "file")
  | [.content.location // "-", .path_b64 // (.path | @base64), .hash // "-", .sha256 // "-", .size, .mode, (.mtime / 1e9 | floor), "\(.uid):\(.gid)"]
  | join(" ")' state.jsonl | sort)

while read -r name target owner; do
  path_of "$name" || continue
  link=$(base64 -d <<< "$target"; printf x)
  # A forged log could name a path below another symlink, or one that is a folder as well.
  if [ "$(cd -- "${path%/*}" && pwd -P; printf x)" = "${path%/*}"$'\n'x ] && ln -sT -- "${link%x}" "$path"; then
    finish "$owner"
  else
    note "refused: $path"
    failed=$((failed + 1))
  fi
done < <(jq -r 'select(.type == "symlink")
  | "\(.path_b64 // (.path | @base64)) \(.target_b64 // (.target | @base64)) \(.uid):\(.gid)"' state.jsonl)

# From the deepest folder to the top: a longer path is never above a shorter one.
while read -r _ name mode mtime owner; do
  path_of "$name" || continue
  finish "$owner" "$mode" "$mtime"
done < <(jq -r 'select(.type == "dir" and .path != "")
  | "\(.path | length) \(.path_b64 // (.path | @base64)) \(.mode) \(.mtime / 1e9 | floor) \(.uid):\(.gid)"' state.jsonl | sort -rn)

other=$(jq -r 'select(.type != "file" and .type != "dir" and .type != "symlink") | .path' state.jsonl | wc -l)
[ "$other" = 0 ] || note "left out: $other fifos, sockets and devices"
note "$files files are restored, and their SHA-256 is right"
[ "$failed" = 0 ] || die "$failed could not be restored; each is named above"
