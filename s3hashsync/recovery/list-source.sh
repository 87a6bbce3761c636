#!/usr/bin/env bash
# Lists a source with stock tools alone: SHA-256, hash and location of each file, and its path.

usage() {
  printf '%s\n' "usage: list-source.sh [-i IDENTITY] [-a TIME] [-p PATH] [--unchecked] [SOURCE]" \
    "Without SOURCE: the names of the sources."
}

. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
options "$@"
[ ${#POSITIONAL[@]} -le 1 ] || { usage >&2; exit 2; }
if [ ${#POSITIONAL[@]} = 0 ]; then
  if [ -n "$BUCKET" ]; then
    s3 s3 ls "s3://$BUCKET/${PREFIX:+$PREFIX/}runs/" | sed -n 's/^ *PRE \(.*\)\/$/\1/p'
  else
    ls "$REPOSITORY/runs"
  fi | sed -nE "/$SOURCE_NAME/p"
  exit 0
fi
open_repository
read_logs "${POSITIONAL[0]}"
jq -r "$SHOWN"'select(.type == "file")
  | "\(.sha256 // "(empty)") \(.hash // "-") \(.content.location // "-") \(.path | tojson)" | shown' state.jsonl
