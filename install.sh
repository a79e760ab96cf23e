#!/bin/sh
# Installs wal-b, or removes it:   curl -fsSL URL/install.sh | sh -s -- [OPTIONS]
#
# Nothing is put in place before its checksum is verified and it has answered to --version; whatever goes wrong, the
# exit code is not 0 and the machine is as it was. POSIX sh: works with dash, busybox and bash.
set -eu

# Where releases are: RELEASES/latest/download/FILE and RELEASES/download/vVERSION/FILE.
RELEASES=https://github.com/wal-b/wal-b/releases

usage() {
  cat <<'USAGE'
Installs wal-b: sh install.sh [OPTIONS], or: curl -fsSL URL/install.sh | sh -s -- [OPTIONS]

  --version X    this release instead of the newest
  --prefix DIR   into DIR/bin instead of /usr/local/bin (root) or ~/.local/bin
  --as-wal-e     also as "wal-e", so that existing archive_commands and crontabs find it
  --force        replace or remove a wal-e or wal-b that does not look like ours
  --from URL     download from this directory, a mirror of one release (also: WALB_INSTALL_URL)
  --uninstall    remove what this script installed
  --help         print this
USAGE
}

main() {
  version='' prefix='' from=${WALB_INSTALL_URL:-}
  unset WALB_INSTALL_URL # wal-b, which is started below, would not know that variable
  action=install as_wal_e=no force=no
  while [ $# -gt 0 ]; do
    case $1 in
      --version | --prefix | --from)
        [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value"
        set_option "$1" "$2"
        shift
        ;;
      --version=?* | --prefix=?* | --from=?*) set_option "${1%%=*}" "${1#*=}" ;;
      --as-wal-e) as_wal_e=yes ;;
      --force) force=yes ;;
      --uninstall) action=uninstall ;;
      -h | --help) usage && return ;;
      *) fail "there is no option \"$1\"; --help lists them" ;;
    esac
    shift
  done

  if [ -z "$prefix" ]; then
    if [ "$(id -u)" = 0 ]; then
      prefix=/usr/local
    else
      prefix=${HOME:?"is not set: say where to install with --prefix DIR"}/.local
    fi
  fi
  case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
  bin=${prefix%/}/bin

  "$action"
}

set_option() {
  case $1 in
    --version) version=${2#v} ;;
    --prefix) prefix=$2 ;;
    --from) from=$2 ;;
  esac
}

install() {
  choose_file
  choose_source
  check_destination

  temporary='' downloading='' staged='' staged_link='' made=''
  trap 'tidy_up' EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  umask 077
  temporary=$(mktemp -d) || fail "could not make a temporary directory"

  say "downloading $file from $source"
  download SHA256SUMS
  expected=$(awk -v name="$file" '$2 == name || $2 == "*" name { print $1 }' "$temporary/SHA256SUMS")
  case $expected in
    '') fail "$source/SHA256SUMS does not list $file" ;;
    *[!0-9a-f]*) fail "$source/SHA256SUMS has no valid checksum of $file" ;;
  esac
  download "$file"
  found=$(sha256 "$temporary/$file")
  [ "$found" = "$expected" ] || fail "the checksum of $file is wrong: expected $expected, found $found"

  # It is tried out under a temporary name in its final directory: /tmp is mounted noexec on many servers.
  make_directory "$bin"
  staged=$(mktemp "$bin/.wal-b.XXXXXX") || fail "cannot write to $bin"
  cp "$temporary/$file" "$staged" || fail "could not write to $bin"
  chmod 755 "$staged"
  if ! answer=$("$staged" --version 2>&1 </dev/null); then
    case $file in *-musl) hint=' (on Alpine Linux it needs: apk add libstdc++)' ;; *) hint='' ;; esac
    fail "the downloaded program does not start on this machine$hint: $answer"
  fi
  case $answer in *"$version"*) ;; *) fail "asked for version $version, and $source has: $answer" ;; esac
  if [ "$as_wal_e" = yes ]; then
    staged_link=$staged.wal-e
    ln -s wal-b "$staged_link"
  fi

  mv -f "$staged" "$bin/wal-b"
  staged='' made=''
  [ -z "$staged_link" ] || mv -f "$staged_link" "$bin/wal-e"
  staged_link=''

  say "installed $bin/wal-b: $answer"
  [ "$as_wal_e" = no ] || say "installed $bin/wal-e, which is wal-b under WAL-E's name"
  tell_about_path
}

uninstall() {
  [ -e "$bin/wal-b" ] || is_our_link || fail "there is no wal-b in $bin; if it is elsewhere, say --prefix DIR"
  if [ -e "$bin/wal-b" ]; then
    is_our_program || [ "$force" = yes ] || fail "$bin/wal-b does not answer as wal-b, so it stays; --force removes it"
    rm -f "$bin/wal-b" || fail "could not remove $bin/wal-b"
    say "removed $bin/wal-b"
  fi
  if is_our_link; then
    rm -f "$bin/wal-e" || fail "could not remove $bin/wal-e"
    say "removed $bin/wal-e"
  fi
}

choose_file() {
  case $(uname -s) in
    Linux) ;;
    *) fail "there is no release for $(uname -s); build it from source with \`bun run build\`" ;;
  esac
  case $(uname -m) in
    x86_64 | amd64) file=wal-b-linux-x64 ;;
    aarch64 | arm64) file=wal-b-linux-arm64 ;;
    *) fail "there is no release for the processor $(uname -m)" ;;
  esac
  # ldd knows which C library the system is built on; a loader of musl alone may just be an installed package.
  case $(ldd --version 2>&1 </dev/null || :) in
    *musl*) file=$file-musl ;;
    *GNU* | *GLIBC*) ;;
    *) for loader in /lib/ld-musl-*; do [ ! -e "$loader" ] || file=${file%-musl}-musl; done ;;
  esac
}

choose_source() {
  source=${from:-}
  if [ -z "$source" ]; then
    source=$RELEASES/latest/download
    [ -z "$version" ] || source=$RELEASES/download/v$version
  fi
  source=${source%/}
}

# Before the download, so that nobody waits for a refusal.
check_destination() {
  [ ! -d "$bin/wal-b" ] || fail "$bin/wal-b is a directory"
  if [ -e "$bin/wal-b" ] && ! is_our_program; then
    [ "$force" = yes ] || fail "$bin/wal-b does not answer as wal-b; --force replaces it"
  fi
  if [ "$as_wal_e" = yes ] && ! is_our_link && { [ -e "$bin/wal-e" ] || [ -L "$bin/wal-e" ]; }; then
    [ ! -d "$bin/wal-e" ] || fail "$bin/wal-e is a directory"
    [ "$force" = yes ] || fail "$bin/wal-e exists and is not wal-b; --force replaces it"
  fi
  existing=$bin
  while [ ! -e "$existing" ]; do existing=$(dirname "$existing"); done
  [ -d "$existing" ] || fail "$existing is not a directory"
  [ -w "$existing" ] || fail "cannot write to $existing; run this as root, or choose a directory with --prefix DIR"
}

is_our_program() {
  case $("$bin/wal-b" --version 2>/dev/null </dev/null || :) in *wal-b*) ;; *) return 1 ;; esac
}

is_our_link() {
  [ -L "$bin/wal-e" ] || return 1
  case $(readlink "$bin/wal-e") in wal-b | "$bin/wal-b") return 0 ;; *) return 1 ;; esac
}

download() {
  if command -v curl >/dev/null 2>&1; then
    set -- "$1" curl -fsSL --connect-timeout 20 --speed-limit 1000 --speed-time 60 --retry 2 -o
  elif command -v wget >/dev/null 2>&1; then
    # GNU's default is 20 tries. busybox has no --tries, and Debian 12's dies of a segmentation fault given -T.
    case $(wget --help 2>&1 </dev/null || :) in
      *--tries*) set -- "$1" wget -q -T 60 --tries=2 -O ;;
      *) set -- "$1" wget -q -O ;;
    esac
  else
    fail "needs curl or wget"
  fi
  name=$1
  shift
  # In the background, because a shell answers a signal only when it waits.
  "$@" "$temporary/$name" "$source/$name" </dev/null &
  downloading=$!
  wait "$downloading" || fail "could not download $source/$name ($1 ended with $?)"
  downloading=''
}

sha256() {
  if command -v sha256sum >/dev/null 2>&1; then
    sha256sum <"$1" | cut -d ' ' -f 1
  elif command -v shasum >/dev/null 2>&1; then
    shasum -a 256 <"$1" | cut -d ' ' -f 1
  elif command -v openssl >/dev/null 2>&1; then
    openssl dgst -sha256 -r <"$1" | cut -d ' ' -f 1
  else
    fail "needs sha256sum, shasum or openssl to verify the download"
  fi
}

# Makes a directory and those above it; `made` is how many of the path's last ones a failure has to take away again.
make_directory() {
  missing=$1 made=0
  while [ ! -d "$missing" ]; do
    made=$((made + 1)) missing=$(dirname "$missing")
  done
  (umask 022 && mkdir -p "$1") || fail "could not make $1"
}

tidy_up() {
  status=$?
  trap - EXIT
  [ -z "$downloading" ] || kill "$downloading" 2>/dev/null || :
  [ -z "$temporary" ] || rm -rf "$temporary"
  [ -z "$staged" ] || rm -f "$staged"
  [ -z "$staged_link" ] || rm -f "$staged_link"
  directory=$bin
  while [ "${made:-0}" -gt 0 ]; do
    [ ! -d "$directory" ] || rmdir "$directory" 2>/dev/null || break
    made=$((made - 1)) directory=$(dirname "$directory")
  done
  exit "$status"
}

tell_about_path() {
  case :${PATH:-}: in
    *":$bin:"*) ;;
    *) say "note: $bin is not on your PATH" ;;
  esac
  say "in archive_command, write the whole path: '$bin/wal-b wal-push %p'"
}

say() { printf '%s\n' "$*"; }

fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

# Braces: a script that was cut off anywhere before the last one does nothing at all.
{ main "$@"; exit; }
