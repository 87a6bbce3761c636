#!/usr/bin/env bash
# Asks AWS to thaw what a source needs, with stock tools alone. AWS charges for it.

usage() {
  printf '%s\n' "usage: thaw-source.sh [-i IDENTITY] [-a TIME] [-p PATH] [--unchecked] [--yes] SOURCE" \
    "Without --yes it says what would be asked for. TIER=Bulk (default) takes up to 48 hours, TIER=Standard up to 12;" \
    "DAYS=14 (default) says how long the thawed copies stay. Run it again to see what is ready."
}

YES=no
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
options "$@"
[ ${#POSITIONAL[@]} = 1 ] || { usage >&2; exit 2; }
[ -n "$BUCKET" ] || die "this repository is a folder: nothing has to be thawed"
open_repository
read_logs "${POSITIONAL[0]}"

# One object or pack: asks for it unless it is on its way or ready, and leaves one word in `results`.
thaw() {
  local kind=$1 name=$2 version class=$4 state days text
  [[ $name =~ ^[0-9a-f]+$ ]] || die "$kind/$name is no name that can be"
  decode "$3"
  version=$text
  local options=(--bucket "$BUCKET" --key "$(key_of "$kind" "$name" "$version")")
  [ "$VERSIONS" != store ] || options+=(--version-id "$version")
  state=$(s3 s3api head-object "${options[@]}" --query '[Restore, ArchiveStatus]' --output text)
  # Of INTELLIGENT_TIERING only what it has moved to its archive tiers; that comes back for good.
  [ "$class" != INTELLIGENT_TIERING ] || [ "${state##*$'\t'}" != None ] || state='ongoing-request="false"'
  case $state in
    *'ongoing-request="false"'*) echo ready >> results ;;
    *'ongoing-request="true"'*) echo waiting >> results ;;
    *)
      printf '%s/%s (%s)\n' "$kind" "$name" "$class"
      days="Days=${DAYS:-14},"
      [ "$class" != INTELLIGENT_TIERING ] || days=
      [ "$YES" = no ] ||
        s3 s3api restore-object "${options[@]}" --restore-request "${days}GlacierJobParameters={Tier=${TIER:-Bulk}}" > /dev/null
      echo asked >> results
      ;;
  esac
}

: > results
total=0
while read -r kind name version class; do
  thaw "$kind" "$name" "$version" "$class" < /dev/null &
  total=$((total + 1))
  [ $((total % 8)) != 0 ] || wait
done < <(jq -r 'select(.content and (.content.class | IN("GLACIER", "DEEP_ARCHIVE", "INTELLIGENT_TIERING")))
  | .hash as $hash | .content.class as $class | .content.location | split(":")
  | if .[0] == "1o" then "objects \($hash) \(.[1]) \($class)" else "packs \(.[1]) \(.[2]) \($class)" end' state.jsonl | sort -u)
wait

count() {
  grep -c "^$1$" results || :
}

word='to ask for (with --yes)'
[ "$YES" = no ] || word='asked for now'
note "$(count asked) $word, $(count waiting) on their way, $(count ready) ready"
[ "$(wc -l < results)" = "$total" ] || die "some could not be asked for; see above"
