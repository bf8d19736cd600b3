# shellcheck shell=bash
# What every runbook shares: it is sourced, never run. The caller's head comment is its help.
#
# A runbook that changes something says what it would do; with --apply it does it. Each may be repeated after a kill.
# The callers start with `bash -p`: no BASH_ENV, no CDPATH and no function of the caller's environment counts here.
set -euo pipefail
umask 077
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH
export LC_ALL=C.UTF-8
unset TAR_OPTIONS

PREFIX=${APPLIANCE_PREFIX:-/opt/appliance}
# shellcheck disable=SC2034  # the callers use it: where the runbooks lie
HERE=$(dirname "$(realpath "$0")")
APPLY=no
ARGUMENTS=()
AS=() # in front of the command: see as_owner

say() { printf '%s\n' "$*"; }
die() {
    printf 'refused: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'next: %s\n' "$2" >&2
    exit 1
}
wrong_usage() {
    printf '%s\nsee %s --help\n' "$*" "${0##*/}" >&2
    exit 2
}
usage() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//p}' "$0"; }

# The options that all know: --prefix DIR, --apply, --dry-run (the default), --help. Others go to `option`, which the
# caller may define: it gets name and value, and sets TAKEN to 1 (the name alone) or 2 (name and value).
read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage; exit 0 ;;
            --apply) APPLY=yes; shift ;;
            --dry-run) APPLY=no; shift ;;
            --prefix) [ -n "${2:-}" ] || wrong_usage "--prefix needs a folder"; PREFIX=$2; shift 2 ;;
            --*)
                TAKEN=0
                if declare -F option >/dev/null; then option "$1" "${2:-}"; fi
                [ "$TAKEN" -gt 0 ] || wrong_usage "unknown option $1"
                [ "$TAKEN" -eq 1 ] || [ -n "${2:-}" ] || wrong_usage "$1 needs a value"
                shift "$TAKEN"
                ;;
            '') wrong_usage "an argument is empty" ;;
            *) ARGUMENTS+=("$1"); shift ;;
        esac
    done
    [[ $PREFIX == /* ]] || PREFIX=$PWD/$PREFIX
    # the parts of an installation
    # shellcheck disable=SC2034  # the callers use them
    ETC=$PREFIX/etc STATE=$PREFIX/state TRUST=$PREFIX/state/trust CONFIG=$PREFIX/etc/appliance.yaml
}

# How many arguments there must be, and what they are called.
want_arguments() { [ "${#ARGUMENTS[@]}" -eq "$1" ] || wrong_usage "wanted: $2"; }

# Do it with --apply, else say it.
run() {
    if [ "$APPLY" = yes ]; then
        say "  $*"
        "$@"
    else
        say "  would run: $*"
    fi
}
finish() { [ "$APPLY" = yes ] || say "nothing was changed; repeat with --apply"; }

# The command: of the installation, or the one that APPLIANCE names.
appliance() {
    local named=${APPLIANCE:-$PREFIX/current/env/bin/appliance} found
    found=$(type -P "$named") || die "no command at $named" "name the installation with --prefix DIR"
    "${AS[@]}" "$found" "$@"
}

# From here on the command runs as the account that owns the state: what root left there, the services could not read.
as_owner() {
    local owner
    owner=$(stat -c '%u:%g' "$STATE")
    if [ "$(id -u)" = 0 ] && [ "${owner%:*}" != 0 ]; then
        AS=(setpriv --reuid "${owner%:*}" --regid "${owner#*:}" --clear-groups)
    fi
}

# systemctl VERB UNIT..., for the units that this host has; SYSTEMCTL names another service manager.
service() {
    local manager=${SYSTEMCTL:-systemctl} verb=$1 unit
    shift
    for unit in "$@"; do
        if "$manager" cat "$unit" >/dev/null 2>&1; then
            run "$manager" "$verb" "$unit"
        else
            say "  no $unit on this host; next, by hand: $verb what runs in its place"
        fi
    done
}

# One holder at a time; the kernel frees the lock of a killed one.
only_one() {
    [ "$APPLY" = yes ] || return 0
    (umask 022 && mkdir -p "$PREFIX") # the services' account must come by
    exec 9<"$PREFIX"                  # also where the disk has become read-only: a backup is wanted then
    flock --nonblock 9 || die "another runbook is at work here" "wait for it; fuser -v $PREFIX"
}

# Two paths change places in one step (renameat2, RENAME_EXCHANGE); not every file system can.
change_places() {
    python3.11 -c 'import ctypes, os, sys
sys.exit(ctypes.CDLL(None).renameat2(-100, os.fsencode(sys.argv[1]), -100, os.fsencode(sys.argv[2]), 2))' "$1" "$2"
}

need_prefix() { [ -d "$PREFIX" ] || die "nothing is installed at $PREFIX" "name the installation with --prefix DIR"; }
