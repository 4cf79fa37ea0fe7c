#!/usr/bin/env bash
# Types the README's commands on a bare machine: a root of Debian 12 (bookworm) or 13 (trixie), of
# Ubuntu 22.04 (jammy) or 24.04 (noble), in which debootstrap has put nothing but git, make and
# certificates, so that `make deps` has to install all the rest. Prints how long each command took and
# its last lines, then how many warnings there were, and the versions of what was installed.
#     tests/fresh_machine.sh SUITE [TARGET...]     as root; TARGET is `demo` and `test` if none is named
# A root stays in $ROOTS and is used again: delete it to begin bare. The clone in it is always new.
set -euo pipefail
cd "$(dirname "$0")/.."
stop() { echo "fresh_machine.sh: $*" >&2; exit 2; }

suite=${1-} roots=${ROOTS:-/var/tmp/r1-roots}
case $suite in
bookworm | trixie) script=sid mirror=http://deb.debian.org/debian components=main ;;
jammy | noble) script=gutsy mirror=http://archive.ubuntu.com/ubuntu components=main,universe ;;
*) stop "SUITE is bookworm, trixie, jammy or noble, not '$suite'" ;;
esac
shift
[ "$(id -u)" = 0 ] || stop "only root can make a root and enter it"
command -v debootstrap >/dev/null || stop "there is no debootstrap; apt-get install it"

root=$roots/$suite
if [ ! -e "$root/bare" ]; then
    rm -rf "$root"
    mkdir -p "$root"
    # Debian does not package Ubuntu's keys. What is built in a root is thrown away, so that one of
    # Ubuntu's may go unchecked where they are absent.
    check=
    [ "$script" = sid ] || [ -e /usr/share/keyrings/ubuntu-archive-keyring.gpg ] || check=--no-check-gpg
    echo "Making $root"
    debootstrap $check --variant=minbase --components=$components --include=git,make,ca-certificates \
        "$suite" "$root" "$mirror" /usr/share/debootstrap/scripts/$script >"$root.log" 2>&1 ||
        { tail -n 20 "$root.log"; exit 1; }
    touch "$root/bare"
fi

# The mounts lie in a name space of their own and go with the last process in it, however that ends.
# unshare itself only obeys SIGKILL.
child=
trap '[ -z "$child" ] || kill -KILL "$child" 2>/dev/null || true' EXIT
inside() {
    unshare --mount --pid --fork --kill-child sh -c '
        mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' "$root" \
        env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 ${JOBS:+JOBS=$JOBS} "$@" \
        </dev/null &
    child=$!
    wait $child
}
cat /etc/resolv.conf >"$root/etc/resolv.conf"
rm -rf "$root/root/r1.cpp"
git clone --quiet . "$root/root/r1.cpp"
system=$(. "$root/etc/os-release" && echo "$PRETTY_NAME")
echo "$system, commit $(git rev-parse --short HEAD), $(date -u +%F)"

log=$root/root/r1.cpp/fresh_machine.log
[ $# -gt 0 ] || set -- demo test
for target in "$@"; do
    echo "== make $target"
    SECONDS=0 status=0
    inside make -C /root/r1.cpp "$target" >"$log.$target" 2>&1 || status=$?
    tail -n 15 "$log.$target"
    time=$(printf '%d min %02d s' $((SECONDS / 60)) $((SECONDS % 60)))
    echo "make $target: $time, exit status $status"
    [ $status = 0 ] || break
done
echo "$(cat "$log".* | grep -c 'warning:' || true) warnings"
inside dpkg-query -W g++ libdnnl-dev nlohmann-json3-dev libcli11-dev doctest-dev cmake
exit $status
