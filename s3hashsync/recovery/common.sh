# Shared by the scripts beside it: opens the repository, its keys and the run logs of a source.
# Needs bash, coreutils, findutils, sed, grep, jq and zstd; age where the repository is encrypted; tar where it has packs; aws where it is in S3.

set -euo pipefail
export LC_ALL=C
umask 077

HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/repository.sh"

IDENTITY=${IDENTITY-}
AT=
WITHIN=
CHECK=yes
STAGE=
POSITIONAL=()

# What can be the name of a source, and of a segment of its run log: nothing else is taken for one.
SOURCE_NAME='^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'
SEGMENT_NAME='^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}\.[0-9]{6}$'

# Text for a terminal: what moves its cursor, hides, or turns the direction of writing is escaped as in JSON. In jq; the programs that
# use it begin with it.
SHOWN='def unit: . as $n | "\\u" + ([4096, 256, 16, 1] | map(($n / . | floor) % 16 | "0123456789abcdef"[.:. + 1]) | add);
  def escaped: explode[0]
    | if . < 65536 then unit else . - 65536 | (55296 + (. / 1024 | floor) | unit) + (56320 + . % 1024 | unit) end;
  def shown: gsub("(?<odd>[\\p{C}\\p{Zl}\\p{Zp}]|[^\\P{Zs} ])"; .odd | escaped);'

die() {
  note "error: $*"
  exit 1
}

# Anybody may have chosen the names in it.
note() {
  local text="$*"
  if [[ $text == *[^[:print:]]* ]]; then
    if command -v jq > /dev/null; then text=$(printf '%s' "$text" | jq -Rrs "$SHOWN shown"); else text=${text//[^[:print:]]/?}; fi
  fi
  printf '%s\n' "$text" >&2
}

need() {
  local tool
  for tool; do
    command -v "$tool" > /dev/null || die "$tool is not installed"
  done
}

absolute() {
  case $1 in
    '' | /*) printf '%s' "$1" ;;
    *) printf '%s' "$PWD/$1" ;;
  esac
}

# The options that all scripts know; the rest goes into POSITIONAL.
options() {
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      -i) IDENTITY=${2:?-i needs a file}; shift 2 ;;
      -a) AT=${2:?-a needs a time as in 20260131T020000Z}; shift 2 ;;
      -p) WITHIN=${2:?-p needs a path}; shift 2 ;;
      --unchecked) CHECK=no; shift ;;
      --yes) YES=yes; shift ;;
      --) shift; POSITIONAL+=("$@"); break ;;
      -?*) usage >&2; exit 2 ;;
      *) POSITIONAL+=("$1"); shift ;;
    esac
  done
  [[ ${AT:-00000000T000000Z} =~ ^[0-9]{8}T[0-9]{6}Z$ ]] || die "-a takes a time in UTC as YYYYMMDDTHHMMSSZ, for instance 20260131T020000Z, not $AT"
}

# The repository

s3() {
  local options=()
  [ -z "$REGION" ] || options+=(--region "$REGION")
  [ -z "$ENDPOINT" ] || options+=(--endpoint-url "$ENDPOINT")
  aws ${options[@]+"${options[@]}"} "$@"
}

# A folder of small files (`keys`, `runs/documents`), copied into $WORK.
documents() {
  mkdir -p "$WORK/$1"
  if [ -n "$BUCKET" ]; then
    s3 s3 sync --only-show-errors "s3://$BUCKET/${PREFIX:+$PREFIX/}$1" "$WORK/$1" > /dev/null
  elif [ -d "$REPOSITORY/$1" ]; then
    cp -R "$REPOSITORY/$1/." "$WORK/$1"
  fi
}

# What lies in the clear: the keys of the epochs, and the run logs. It goes when the script ends.
open_repository() {
  need jq zstd base64 sha256sum
  IDENTITY=$(absolute "$IDENTITY")
  REPOSITORY=$(absolute "$REPOSITORY")
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/s3hashsync-recovery.XXXXXXXX")
  trap 'rm -rf "$WORK" ${STAGE:+"$STAGE"}' EXIT
  if [ -n "$BUCKET" ]; then
    need aws
    s3 s3 cp --only-show-errors "s3://$BUCKET/${PREFIX:+$PREFIX/}repository.json" "$WORK/repository.json" > /dev/null
  else
    [ -f "$REPOSITORY/repository.json" ] || die "there is no repository at $REPOSITORY: is the disk mounted? REPOSITORY=/elsewhere $0 …"
    cp "$REPOSITORY/repository.json" "$WORK/repository.json"
  fi
  said() { jq -r "$1" "$WORK/repository.json"; }
  [ "$(said .id)" = "$ID" ] || die "this is another repository ($(said .id)) than the one that these scripts are for ($ID)"
  [ "$(said .format)" = 1 ] || die "the repository has format $(said .format); these scripts know format 1"
  [ "$(said .encryption)" = "$ENCRYPTION" ] || die "the repository says encryption $(said .encryption), and was $ENCRYPTION before"
  open_keys
}

open_keys() {
  [ "$ENCRYPTION" = age ] || return 0
  need age
  documents keys
  local key found=
  if ! ls "$WORK"/keys/*.age > /dev/null 2>&1 && [ -d "$HERE/keys" ]; then
    note "the repository has no keys; those beside this script are taken"
    cp -R "$HERE/keys/." "$WORK/keys"
  fi
  for key in "$WORK"/keys/*.age; do
    [[ ${key##*/} =~ ^[0-9]+\.age$ ]] || continue
    if [ -n "$IDENTITY" ]; then
      age -d -i "$IDENTITY" "$key" || die "$IDENTITY does not open keys/${key##*/}"
    else
      note "no identity file (-i FILE): the passphrase of the repository is asked for"
      [ -f "${key%.age}.1.age" ] || die "keys/${key##*/} has no passphrase: name an identity file with -i"
      age -d "${key%.age}.1.age" || die "the passphrase does not open keys/${key##*/}"
    fi
    found=yes
  done > "$WORK/epochs.txt"
  [ -n "$found" ] || die "the repository is encrypted, and its folder keys/ is empty: put a copy of it beside this script"
  if checked; then
    local root public
    while read -r root; do
      public=$(hkdf "$root" "s3hashsync fingerprint")
      [ "${public:0:20}" = "$FINGERPRINT" ] || die "the key is of another repository: its fingerprint is not $FINGERPRINT"
      ROOT_KEY=$root
    done < <(sed -n 's/^# root-key: //p' "$WORK/epochs.txt")
  fi
}

# Whether what age cannot tell, who wrote something, is to be checked.
checked() {
  [ "$ENCRYPTION" = age ] && [ "$CHECK" = yes ] && command -v openssl > /dev/null
}

# What is stored, as it was before it was compressed and encrypted.
opened() {
  if [ "$ENCRYPTION" = age ]; then age -d -i "$WORK/epochs.txt" | zstd -dqc; else zstd -dqc; fi
}

# HMAC and keys. (A key on openssl's command line is seen by all users of this machine.)

unhex() {
  printf '%b' "$(sed 's/../\\x&/g')"
}

hmac() {
  openssl dgst -sha256 -mac HMAC -macopt "hexkey:$1" -r | cut -d ' ' -f 1
}

sha() {
  openssl dgst -sha256 -binary
}

# HKDF-SHA256 without salt, 32 bytes: two HMACs.
hkdf() {
  local extracted
  extracted=$(printf '%s' "$1" | unhex | hmac "$(printf '%064d' 0)")
  printf '%s\001' "$2" | hmac "$extracted"
}

# Run logs

# Leaves one line for each path of the newest state (or the one at $AT) in $WORK/state.jsonl.
read_logs() {
  local source=$1 segment header each first
  [[ $source =~ $SOURCE_NAME ]] || die "$source is no name of a source"
  documents "runs/$source"
  cd "$WORK"
  segment='' first=''
  for each in "runs/$source"/*; do
    # Whatever else lies there (a file manager's notes, a copy) must not pass for the newest of them.
    [[ -f $each && ${each##*/} =~ $SEGMENT_NAME ]] || continue
    first=${first:-${each##*/}}
    # A run has the time at which it began in its name.
    if [ -z "$AT" ] || [[ ! ${each##*/} > "$AT~" ]]; then segment=$each; fi
  done
  [ -n "$first" ] || die "there are no run logs of a source $source: list-source.sh names the sources"
  [ -n "$segment" ] || die "nothing of $source is as old as $AT: its oldest run log is of ${first%%-*}"
  SEGMENTS=()
  mkdir -p "lines/runs/$source"
  while [ -n "$segment" ]; do
    [ -f "$segment" ] || die "$segment is gone: is there an older version of it in the bucket?"
    opened < "$segment" > "lines/$segment" || die "$segment cannot be read"
    header=$(head -n 1 "lines/$segment")
    [ "$(jq -r '"runs/\(.source)/\(.run).\(.number + 1000000 | tostring | .[1:]) \(.repository)"' <<< "$header")" = "$segment $ID" ] ||
      die "$segment is not what its name says"
    tail -n 2 "lines/$segment" | jq -es 'any(.[]; .end)' > /dev/null || die "$segment is cut off"
    SEGMENTS=("$segment" ${SEGMENTS[@]+"${SEGMENTS[@]}"})
    [ "$(jq -r .kind <<< "$header")" != checkpoint ] || break
    header=$(jq -r .previous <<< "$header")
    # From here on it is a path.
    [ -z "$header" ] || [[ $header == runs/$source/* && ${header#"runs/$source/"} =~ $SEGMENT_NAME && $header < $segment ]] ||
      die "$segment does not belong to the log of $source"
    segment=$header
  done
  note "state of $(head -n 1 "lines/${SEGMENTS[-1]}" | jq -r '.time | floor | todate'), by ${#SEGMENTS[@]} segment(s) of the run log"
  check_logs "$source"
  replay "$source"
}

check_logs() {
  local each key mac_key found
  [ "$ENCRYPTION" = age ] || return 0
  if ! checked; then
    note "warning: it is not checked who wrote the run logs$(command -v openssl > /dev/null || printf ' (openssl is not installed)')"
    return
  fi
  age -d -i epochs.txt "keys/sources/$1.age" > source.json || die "keys/sources/$1.age cannot be opened"
  mac_key=$(hkdf "$(hkdf "$ROOT_KEY" 's3hashsync hash')" 's3hashsync sources')
  [ "$(jq -acjS 'del(.mac)' source.json | hmac "$mac_key")" = "$(jq -r .mac source.json)" ] || die "keys/sources/$1.age was written by somebody else"
  [ "$(jq -r '"\(.repository) \(.source)"' source.json)" = "$ID $1" ] || die "keys/sources/$1.age is of another source"
  key=$(jq -r .log_key source.json)
  for each in "${SEGMENTS[@]}"; do
    found=$({ head -n 1 "lines/$each" | sha; sed '1d;$d' "lines/$each" | sha; } | hmac "$key")
    [ "$found" = "$(tail -n 1 "lines/$each" | jq -r .hmac)" ] || die "$each was written by somebody else (--unchecked believes it)"
  done
}

# The last word on a path counts.
replay() {
  local each
  for each in "${SEGMENTS[@]}"; do cat "lines/$each"; done |
    jq -r 'select(has("path")) | "\(.path_b64 // (.path | @base64)) \(tojson)"' |
    tac | sort -t ' ' -s -u -k 1,1 | cut -d ' ' -f 2- |
    jq -c --arg within "${WITHIN%/}" 'select(.removed != true)
      | select($within == "" or .path == $within or (.path | startswith($within + "/")))' > state.jsonl
  [ -z "$WITHIN" ] || [ -s state.jsonl ] ||
    die "there is no path $WITHIN in $1${AT:+ at $AT} (list-source.sh names all of them, as -p takes them: without a slash in front)"
}

# A path as the scripts pass it on, so that it may hold anything: percent-encoded, or `=` and base64 where it is not UTF-8.
# In jq; the programs that use it begin with it.
WORDS='def word($text; $bytes): if $bytes then "=" + $bytes else $text | @uri end;
  def name: word(.path; .path_b64); def link: word(.target; .target_b64);
  def seconds: .mtime | if type == "number" then . / 1e9 | floor else 0 end;'

# Sets `text` to what is percent-encoded, without a process for each.
decode() {
  text=${1//\\/\\\\}
  printf -v text %b "${text//%/\\x}"
}

# Sets `text` to what such a word stands for.
plain() {
  case $1 in
    =*) text=$(base64 -d <<< "${1#=}"; printf x); text=${text%x} ;;
    *) decode "$1" ;;
  esac
}

# Sets `location` for a hash whose line does not say it: another line does.
declare -A PLACES=()
place_of() {
  local each hash place
  if [ ${#PLACES[@]} = 0 ]; then
    while read -r hash place; do
      PLACES[$hash]=$place
    done < <(for each in "${SEGMENTS[@]}"; do jq -r 'select(.content) | "\(.hash) \(.content.location)"' "lines/$each"; done)
  fi
  location=${PLACES[$1]--}
}

# Contents

# Hash and SHA-256 that a line says, and the SHA-256 that was found. A host whose state was made anew may know the hash alone (`-` for
# the SHA-256).
is_content() {
  if [ "$2" != - ]; then
    [ "$3" = "$2" ]
  elif [ "$ENCRYPTION" = off ]; then
    [ "$3" = "$1" ]
  elif checked; then
    [ "$(printf '%s' "$3" | unhex | hmac "$(hkdf "$ROOT_KEY" 's3hashsync hash')")" = "$1" ]
  else
    note "not checked, for there is no openssl: content $1"
  fi
}

# Kind (`objects` or `packs`), name, version: the key in the bucket, and the version where it has to be named.
key_of() {
  if [ "$VERSIONS" = store ]; then
    printf '%s' "${PREFIX:+$PREFIX/}$1/$2"
  else
    printf '%s' "${PREFIX:+$PREFIX/}$1/$2.$3"
  fi
}

# An object or a pack, opened.
stored() {
  [[ $2 =~ ^[0-9a-f]+$ && $3 != */* ]] || die "$1/$2, version $3, is no name that can be"
  if [ -z "$BUCKET" ]; then
    opened < "$REPOSITORY/$1/${2:0:2}/$2.$3"
  elif [ "$VERSIONS" = store ]; then
    s3 s3api get-object --bucket "$BUCKET" --key "$(key_of "$@")" --version-id "$3" /dev/fd/3 3>&1 > /dev/null | opened
  else
    s3 s3api get-object --bucket "$BUCKET" --key "$(key_of "$@")" /dev/fd/3 3>&1 > /dev/null | opened
  fi
}

# Sets `kind`, `name` and `version` to what a location says.
located() {
  local text
  IFS=: read -r kind name version _ <<< "$1"
  decode "${version:-$name}"
  version=$text
}

# Takes members out of a pack, into a folder: name and version of the pack, the folder, and a file with the members' names. Whatever
# else is in the pack stays in it. What is missing is missed by whoever compares.
unpack() {
  stored packs "$1" "$2" | tar -x --no-same-owner -C "$3" -T "$4" -f -
}

# Hash and location: the content's bytes.
content() {
  local kind name version
  [[ $1 =~ ^[0-9a-f]{64}$ ]] || die "$1 is no hash"
  located "$2"
  case $kind in
    1o) stored objects "$1" "$version" ;;
    1p)
      mkdir "$WORK/unpacked"
      printf '%s\n' "$1" > "$WORK/member"
      unpack "$name" "$version" "$WORK/unpacked" "$WORK/member"
      is_file "$WORK/unpacked/$1" && cat "$WORK/unpacked/$1"
      ;;
    *) note "no place that these scripts know: ${2:-none}"; return 1 ;;
  esac
}

is_file() {
  [ -f "$1" ] && [ ! -L "$1" ]
}
