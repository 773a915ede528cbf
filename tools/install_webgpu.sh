#!/bin/sh
# Installs what the WebGPU execution provider needs on Debian and Ubuntu: the Vulkan loader, Mesa's Vulkan drivers with
# their software device, and the Python wheel onnxruntime-ep-webgpu. Idempotent; needs root for the system packages.
#
#   tools/install_webgpu.sh             system packages, then the wheel into the environment of `python3`
#   tools/install_webgpu.sh --system    only the system packages
#   PYTHON=.venv/bin/python tools/install_webgpu.sh      another environment
#
# The provider rejects the software device of Mesa 22.3, which Debian 12 ships, so drivers come from the release's
# backports where the release itself has nothing newer. The backports source is the machine's own Debian source with
# another suite: same host, same keys. It stays in sources.list.d/onnx-pointwise-backports.list, where it upgrades
# nothing that was not installed from it.
set -eu

needed=25 # first Mesa release series that was seen to work
python=${PYTHON:-python3}

fail() {
    echo "install_webgpu: $*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        fail "system packages can only be installed as root: run this as root, or install libvulkan1 and" \
            "mesa-vulkan-drivers $needed or newer yourself"
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        fail "apt-get $1 failed, see above"
    }
}

# The Mesa series of a version such as 25.0.7-2~bpo12+1: 25. Nothing for "(none)" or nothing.
series() {
    version=${1#*:}
    case $version in
        [0-9]*) echo "${version%%.*}" ;;
        *) echo 0 ;;
    esac
}

installed_series() {
    series "$(dpkg-query --show --showformat='${Version}' mesa-vulkan-drivers 2>/dev/null || true)"
}

candidate_series() {
    series "$(apt-cache policy mesa-vulkan-drivers 2>/dev/null | sed -n 's/^ *Candidate: *//p')"
}

# Prints an apt source line for the backports of this release, made from the source that provides the release itself.
backports_line() {
    apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)|$(SIGNED_BY)' \
        'Created-By: Packages' 2>/dev/null |
        while IFS='|' read -r origin suite component uri key; do
            [ "$origin" = Debian ] && [ "$suite" = "$1" ] && [ "$component" = main ] || continue
            case $key in
                '' | '$('*) key=$(signing_key "$uri") ;;
            esac
            echo "deb ${key:+[signed-by=$key] }$uri $1-backports main"
            break
        done
}

# Older apt does not report Signed-By: read it from the source files, for the stanza or line that has this URI.
signing_key() {
    {
        deb822_key "$1"
        grep -hs '^deb ' /etc/apt/sources.list /etc/apt/sources.list.d/*.list | grep -F "${1%/}" |
            sed -n 's/.*signed-by=\([^] ]*\).*/\1/p'
    } | head -n 1
}

deb822_key() {
    cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk -v uri="${1%/}" '
        BEGIN { RS = ""; FS = "\n" }
        {
            here = 0; key = ""
            for (i = 1; i <= NF; i++) {
                if (tolower($i) ~ /^uris:/ && index($i " ", uri " ") + index($i " ", uri "/ ")) here = 1
                if (tolower($i) ~ /^signed-by:[ \t]*\//) { key = $i; sub(/^[^:]*:[ \t]*/, "", key) }
            }
            if (here && key != "") { print key; exit }
        }'
}

install_system() {
    if dpkg-query --show libvulkan1 >/dev/null 2>&1 && [ "$(installed_series)" -ge "$needed" ]; then
        echo "install_webgpu: the Vulkan loader and Mesa $(installed_series) are already installed"
        return
    fi
    for tool in apt-get apt-cache dpkg-query; do
        command -v "$tool" >/dev/null 2>&1 ||
            fail "no $tool on this machine: install a Vulkan loader and Mesa $needed or newer with its own package manager"
    done
    apt_get update
    target=
    if [ "$(candidate_series)" -lt "$needed" ]; then
        codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
        [ -n "$codename" ] || fail "/etc/os-release names no release, so its backports cannot be found"
        line=$(backports_line "$codename")
        [ -n "$line" ] ||
            fail "this release has Mesa $(candidate_series), $needed or newer is needed, and apt has no Debian source" \
                "from which its backports could be derived: install mesa-vulkan-drivers $needed or newer yourself"
        echo "$line" >"$list"
        as_root install -m 644 "$list" /etc/apt/sources.list.d/onnx-pointwise-backports.list
        apt_get update
        target=$codename-backports
        apt-cache policy mesa-vulkan-drivers | grep -qF "$target" || {
            as_root rm -f /etc/apt/sources.list.d/onnx-pointwise-backports.list
            fail "the release's backports cannot be read from the machine's Debian source:" \
                "install mesa-vulkan-drivers $needed or newer yourself"
        }
    fi
    apt_get install --yes --no-install-recommends ${target:+--target-release "$target"} libvulkan1 mesa-vulkan-drivers
    [ "$(installed_series)" -ge "$needed" ] ||
        fail "apt installed Mesa $(installed_series), but $needed or newer is needed"
    echo "install_webgpu: installed the Vulkan loader and Mesa $(installed_series)"
}

install_wheel() {
    if "$python" -c 'import onnxruntime_ep_webgpu' 2>/dev/null; then
        echo "install_webgpu: onnxruntime-ep-webgpu is already installed"
        return
    fi
    "$python" -m pip install --quiet onnxruntime-ep-webgpu ||
        fail "pip could not install onnxruntime-ep-webgpu: it has wheels for 64-bit Linux, Windows and macOS on arm64"
    echo "install_webgpu: installed onnxruntime-ep-webgpu"
}

log=$(mktemp)
list=$(mktemp)
trap 'rm -f "$log" "$list"' EXIT
case ${1:-} in
    '') install_system && install_wheel ;;
    --system) install_system ;;
    *) fail "unknown argument '$1': there is only --system" ;;
esac
echo "install_webgpu: without a GPU, set ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 to let the provider use the software device"
