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

# Contents are fetched into this folder, and compared, before they get their names.
STAGE=$(mktemp -d "$TARGET/.s3hashsync-recovery.XXXXXXXX")
failed=0 files=0

fails() {
  note "$1"
  failed=$((failed + 1))
}

# Sets `path`. A name may hold anything, also a line feed at its end, but may not lead out of the target.
path_of() {
  local text
  plain "$1"
  path=$TARGET/$text
  case /$text/ in
    */../* | */./* | *//*) return 1 ;;
  esac
}

# Reads lines of a key and a name, and runs a command for many names at once that have the same key. What the file system refuses is
# said, and no reason to stop.
together() {
  local key name path last='' paths=()
  while read -r key name; do
    if [ ${#paths[@]} = 200 ] || { [ "$key" != "$last" ] && [ ${#paths[@]} != 0 ]; }; then
      "$@" "$last" "${paths[@]}" || :
      paths=()
    fi
    path_of "$name" || continue
    last=$key
    paths+=("$path")
  done
  [ ${#paths[@]} = 0 ] || "$@" "$last" "${paths[@]}" || :
}

make_folders() { mkdir -p -- "${@:2}"; }
set_owner() { [ "$EUID" != 0 ] || chown -h -- "$@"; }
set_time() { touch -d "@$1" -- "${@:2}"; }
set_mode() { chmod -- "$@"; }

# Name, rights, time and owner of what is there now, for the words after this.
remember() {
  printf '%s %s\n' "$2" "$1" >> "$WORK/modes"
  printf '%s %s\n' "$3" "$1" >> "$WORK/times"
  printf '%s %s\n' "$4" "$1" >> "$WORK/owners"
}

forget() {
  : > "$WORK/modes"
  : > "$WORK/times"
  : > "$WORK/owners"
}

# Gives all of that its rights: with `sort` in any order, with `cat` in the order in which it was remembered.
set_rights() {
  sort "$WORK/owners" | together set_owner
  sort "$WORK/times" | together set_time
  "$1" "$WORK/modes" | together set_mode
  forget
}

# Contents come in batches, those of one pack or some objects. `batch` holds the lines; by their hashes: where a content is, how long,
# how many paths have it, and the SHA-256 that was found.
declare -A place=() length=() uses=() found=()
batch=() batch_of=

# The batch's contents into $STAGE/<hash>. Whether it is the right one is seen afterwards.
fetch() {
  local kind name version hash running=0
  for hash in "${!place[@]}"; do
    located "${place[$hash]}"
    if [ "$kind" = 1p ]; then
      printf '%s\n' "${!place[@]}" > "$WORK/members"
      unpack "$name" "$version" "$STAGE" "$WORK/members" || :
      return
    fi
    [ $running -lt 4 ] || wait -n || :
    running=$((running + 1))
    { content "$hash" "${place[$hash]}" | head -c "$((${length[$hash]} + 1))" > "$STAGE/$hash"; } &
  done
  wait
}

compare() {
  local hash sha256
  for hash in "${!place[@]}"; do
    if is_file "$STAGE/$hash"; then printf '%s\0' "$hash"; fi
  done > "$WORK/fetched"
  while read -r sha256 hash; do
    found[$hash]=$sha256
  done < <(cd "$STAGE" && xargs -0 -r sha256sum -- < "$WORK/fetched")
}

# Under its name goes what is right; a content that several paths have is copied for all but the last.
put() {
  local line hash sha256 name path
  : > "$WORK/copied"
  : > "$WORK/moved"
  for line in "${batch[@]}"; do
    read -r hash sha256 name _ <<< "$line"
    path_of "$name"
    is_content "$hash" "$sha256" "${found[$hash]-}" || continue
    [ -d "${path%/*}" ] || mkdir -p -- "${path%/*}" || continue
    uses[$hash]=$((uses[$hash] - 1))
    if [ "${uses[$hash]}" = 0 ]; then
      printf '%s\0' "$STAGE/$hash" "$path" >> "$WORK/moved"
    else
      printf '%s\0' "$STAGE/$hash" "$path" >> "$WORK/copied"
    fi
  done
  xargs -0 -r -n 2 -P 4 cp -T -- < "$WORK/copied" || :
  xargs -0 -r -n 2 -P 4 mv -T -- < "$WORK/moved" || :
}

finish_batch() {
  local line hash name mode mtime owner path
  [ ${#batch[@]} != 0 ] || return 0
  fetch
  compare
  put
  for line in "${batch[@]}"; do
    read -r hash _ name mode mtime owner <<< "$line"
    path_of "$name"
    if is_file "$path"; then
      remember "$name" "$mode" "$mtime" "$owner"
      files=$((files + 1))
    else
      fails "damaged or missing: $path"
    fi
  done
  rm -rf "${STAGE:?}"
  mkdir "$STAGE"
  place=() length=() uses=() found=() batch=()
}

# Folders first. A symlink's own is made now: once there are symlinks, nothing may be made any more that could lie behind one.
jq -r "$WORDS"'select(.type == "dir" and .path != "") | "- \(name)"' state.jsonl | together make_folders
jq -r "$WORDS"'select(.type == "symlink") | name' state.jsonl > links
while read -r name; do
  path_of "$name" || continue
  [ -d "${path%/*}" ] || mkdir -p -- "${path%/*}" || :
done < links

jq -r "$WORDS"'select(.type == "file")
  | [.content.location // "-", .hash // "-", .sha256 // "-", name, .mode, seconds, "\(.uid):\(.gid)", (.size | tostring)]
  | join(" ")' state.jsonl | sort > contents
forget
while read -r location hash sha256 name mode mtime owner size; do
  path_of "$name" || { fails "refused: $path"; continue; }
  if [ "$hash" = - ]; then
    if { [ -d "${path%/*}" ] || mkdir -p -- "${path%/*}"; } && { : > "$path"; } 2> /dev/null; then
      remember "$name" "$mode" "$mtime" "$owner"
      files=$((files + 1))
    else
      fails "could not be made: $path"
    fi
    continue
  fi
  # Bash would run what stands in an index, so nothing but digits is calculated with, and nothing but a hash is an index.
  [[ $hash =~ ^[0-9a-f]{64}$ && $size =~ ^[0-9]+$ ]] || { fails "damaged or missing: $path"; continue; }
  [ "$location" != - ] || place_of "$hash"
  case $location in
    1p:*) into=${location%:*:*:*} ;;
    *) into=objects ;;
  esac
  if [ "$into" != "$batch_of" ] || [ "${place[$hash]-$location}" != "$location" ] || { [ "$into" = objects ] && [ ${#place[@]} = 64 ]; }; then
    finish_batch
    batch_of=$into
  fi
  batch+=("$hash $sha256 $name $mode $mtime $owner")
  place[$hash]=$location length[$hash]=$size
  uses[$hash]=$((${uses[$hash]-0} + 1))
done < contents
finish_batch
rmdir -- "$STAGE"
set_rights sort

# From the deepest folder to the top: a longer path is never above a shorter one. Their rights come after what lies in them; but whether
# they are there is looked up while nothing can lie behind a symlink.
jq -r "$WORDS"'select(.type == "dir" and .path != "")
  | "\(.path | length) \(name) \(.mode) \(seconds) \(.uid):\(.gid)"' state.jsonl | sort -rn > folders
while read -r _ name mode mtime owner; do
  path_of "$name" || { fails "refused: $path"; continue; }
  if [ -d "$path" ]; then remember "$name" "$mode" "$mtime" "$owner"; else fails "could not be made: $path"; fi
done < folders

jq -r "$WORDS"'select(.type == "symlink") | "\(name) \(link) \(.uid):\(.gid)"' state.jsonl > links
while read -r name target owner; do
  path_of "$name" || { fails "refused: $path"; continue; }
  plain "$target"
  # A forged log could name a path below another symlink, or one that is a folder as well.
  if cd -P -- "${path%/*}" 2> /dev/null && [ "$PWD" = "${path%/*}" ] && ln -sT -- "$text" "$path"; then
    printf '%s %s\n' "$owner" "$name" >> "$WORK/owners"
  else
    fails "refused: $path"
  fi
done < links
cd "$WORK"
set_rights cat

other=$(jq -r 'select(.type != "file" and .type != "dir" and .type != "symlink") | .path | tojson' state.jsonl | wc -l)
[ "$other" = 0 ] || note "left out: $other fifos, sockets and devices"
note "$files files are restored, and their SHA-256 is right"
[ "$failed" = 0 ] || die "$failed could not be restored; each is named above"
