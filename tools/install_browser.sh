#!/bin/sh
# Installs the browser that the tests of the HTML report look at it with: Debian's and Ubuntu's packages of Chromium and
# of its driver, which fit each other. Idempotent; needs root.
set -eu

fail() {
    echo "install_browser: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        fail "system packages can only be installed as root: run this as root, or install chromium and its driver yourself"
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        fail "apt-get $1 failed, see above"
    }
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; then
    echo "install_browser: Chromium and its driver are already installed"
    exit 0
fi
command -v apt-get >/dev/null 2>&1 ||
    fail "no apt-get on this machine: install Chromium and its driver with its own package manager"
apt_get update
apt_get install --yes --no-install-recommends chromium chromium-driver fonts-dejavu-core
echo "install_browser: installed Chromium and its driver"
