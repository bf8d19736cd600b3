# shellcheck shell=bash
# What every runbook shares: it is sourced, never run. The caller's head comment is its help.
#
# A runbook that changes something says what it would do; with --apply it does it. Each may be repeated after a kill.
set -euo pipefail
umask 077

PREFIX=${APPLIANCE_PREFIX:-/opt/appliance}
APPLY=no
ARGUMENTS=()

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
            --prefix) [ $# -ge 2 ] || wrong_usage "--prefix needs a folder"; PREFIX=$2; shift 2 ;;
            --*)
                TAKEN=0
                if declare -F option >/dev/null; then option "$1" "${2:-}"; fi
                [ "$TAKEN" -gt 0 ] || wrong_usage "unknown option $1"
                [ $# -ge "$TAKEN" ] || wrong_usage "$1 needs a value"
                shift "$TAKEN"
                ;;
            *) ARGUMENTS+=("$1"); shift ;;
        esac
    done
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
    local command=${APPLIANCE:-$PREFIX/current/env/bin/appliance}
    [ -x "$command" ] || command -v "$command" >/dev/null || die "no command at $command" "name the installation with --prefix DIR"
    "$command" "$@"
}

# systemctl VERB UNIT; SYSTEMCTL names another service manager.
service() { run "${SYSTEMCTL:-systemctl}" "$@"; }

# One holder at a time; the kernel frees the lock of a killed one.
only_one() {
    mkdir -p "$STATE"
    exec 9>"$STATE/.runbook.lock"
    flock --nonblock 9 || die "another runbook is at work here" "wait for it; $STATE/.runbook.lock"
}

need_prefix() { [ -d "$PREFIX" ] || die "nothing is installed at $PREFIX" "name the installation with --prefix DIR"; }
