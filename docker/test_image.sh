#!/usr/bin/env bash
# Builds docker/Dockerfile, and runs some of the tests in the image: see usage() below.
set -euo pipefail

here=$(cd -P -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
checkout=$(dirname -- "$here")
tests=(tests/test_parallel.py tests/test_points.py tests/test_derivatives.py tests/test_hyco.py tests/test_files_fields.py)

usage() {
    cat <<USAGE
usage: docker/test_image.sh [--install] [--engine podman|docker|buildah] [--suite trixie|sid] [--keep FOLDER]

Builds the image of docker/Dockerfile and runs ${tests[*]}
in it, as a user who is not root, on one and on two ranks.  About ten minutes and, while it runs, 6 GB.

As root, podman and buildah get a folder of their own for their images, and need no service, no cgroups and no
registry: where Debian's own image cannot be had, mmdebstrap makes one like it.  So this works behind docker/run too:

    docker/run bash docker/test_image.sh

    --install      apt-get install podman, crun and mmdebstrap; also done where CI is set and no engine is there, and
                   inside of docker/run, from where nothing of it stays
    --engine       by default the first of the three that works
    --keep FOLDER  images and logs go there and stay

Exit status: 0 all right; 1 the build or a test failed; 64 wrong usage; 69 something is missing.
USAGE
}

say() { printf 'test_image: %s\n' "$*"; }
fail() { local status=$1; shift; say "$@" >&2; exit "$status"; }
have() { command -v "$1" >/dev/null 2>&1; }

arguments=("$@") install=${CI:+true} keep='' engines=(podman docker buildah) suite=trixie
while (($#)); do
    case $1 in
        --install) install=true ;;
        --engine) engines=("${2:?--engine needs a name}") && shift ;;
        --suite) suite=${2:?--suite needs a name} && shift ;;
        --keep) keep=$(realpath -m -- "${2:?--keep needs a folder}") && shift ;;
        --help | -h) usage; exit 0 ;;
        *) usage >&2; exit 64 ;;
    esac
    shift
done
[[ ${engines[0]} =~ ^(podman|docker|buildah)$ ]] || fail 64 "--engine ${engines[0]} is unknown"
[[ $suite =~ ^(trixie|sid)$ ]] || fail 64 "--suite $suite is unknown"
base=docker.io/library/debian:$suite-slim tag=localhost/hyco_fem:test

# --- what it needs -----------------------------------------------------------------------------------------------

# Inside of docker/run, / is thrown away with the command.
if [[ ${HYCO_ENV:-} == native && $(stat --file-system --format %T /) == overlayfs ]]; then install=true; fi
if [[ -n $install && $(id -u) == 0 ]] && ! have podman && ! have docker && ! have buildah; then
    say "installing podman, crun and mmdebstrap"
    log=$(mktemp)
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends podman crun mmdebstrap; } \
        >"$log" 2>&1 </dev/null || { tail -n 5 "$log" >&2; fail 69 "apt-get could not install podman"; }
    rm -f -- "$log"
fi

# As root in namespaces of its own, which take the engine's mounts and processes away with them.
if [[ $(id -u) == 0 && -z ${TEST_IMAGE_INSIDE:-} ]]; then
    separate=(unshare --mount --pid --fork --kill-child=KILL --mount-proc --propagation private)
    if "${separate[@]}" true 2>/dev/null; then
        export TEST_IMAGE_INSIDE=1
        exec "${separate[@]}" -- bash "${BASH_SOURCE[0]}" ${arguments[@]+"${arguments[@]}"}
    fi
fi

# Not in /tmp, which is often memory.
mkdir -p -- "$checkout/out"
folder=${keep:-$(mktemp -d "$checkout/out/image.XXXXXX")}
mkdir -p -- "$folder"

stop() {
    local status=$?
    trap - EXIT
    if [[ -z $keep ]]; then rm -rf --one-file-system -- "$folder"; fi
    exit "$status"
}
trap stop EXIT
trap 'exit 143' INT TERM HUP

# An engine as root, without what a bare machine or a container does not have.  That of a user is left as it is.
settings() {
    [[ $(id -u) == 0 ]] || return 0
    if [[ -n ${TEST_IMAGE_INSIDE:-} && -d /sys/fs/cgroup/unified ]]; then
        # crun refuses where both versions of cgroups are mounted.
        umount /sys/fs/cgroup/unified 2>/dev/null || true
    fi
    export CONTAINERS_CONF=$folder/containers.conf CONTAINERS_STORAGE_CONF=$folder/storage.conf
    export BUILDAH_ISOLATION=chroot PODMAN_IGNORE_CGROUPSV1_WARNING=1
    printf '%s\n' '[containers]' 'netns = "host"' 'utsns = "host"' 'cgroups = "disabled"' \
        "default_ulimits = [\"nofile=$(ulimit -Hn):$(ulimit -Hn)\", \"nproc=$(ulimit -Hu):$(ulimit -Hu)\"]" \
        '[engine]' 'cgroup_manager = "cgroupfs"' 'events_logger = "none"' >"$CONTAINERS_CONF"
    printf '%s\n' '[storage]' 'driver = "overlay"' "graphroot = \"$folder/images\"" "runroot = \"$folder/run\"" \
        >"$CONTAINERS_STORAGE_CONF"
}

# An engine that is there and whose service, if it has one, answers.
choose_engine() {
    local reasons=()
    for engine in "${engines[@]}"; do
        if ! have "$engine"; then
            reasons+=("$engine is not installed")
        elif ! timeout 60 "$engine" info >"$folder/log" 2>&1 </dev/null; then
            reasons+=("\`$engine info\` fails: $(grep -v '^ *$' "$folder/log" | tail -n 1)")
        else
            return 0
        fi
    done
    printf '    %s\n' "${reasons[@]}" >&2
    fail 69 "no engine: apt-get install podman crun, or call it as root with --install"
}

# --- the image ---------------------------------------------------------------------------------------------------

# What `FROM` asks for: Debian's own image, or one like it under the same name.
get_base() {
    if "$engine" pull "$base" >"$folder/log" 2>&1 </dev/null; then return; fi
    if [[ $engine != docker ]] && "$engine" inspect --type image "$base" >/dev/null 2>&1; then return; fi
    if [[ $engine != podman ]] || ! have mmdebstrap; then
        fail 69 "$engine cannot pull $base, and only podman with mmdebstrap does without: $(tail -n 1 "$folder/log")"
    fi
    say "cannot pull $base: making one with mmdebstrap"
    mmdebstrap --variant=minbase --quiet --aptopt='Acquire::Check-Valid-Until "false"' "$suite" - 2>"$folder/log" |
        podman import --quiet - "$base" >/dev/null || { tail -n 5 "$folder/log" >&2; fail 1 "mmdebstrap failed"; }
}

build() {
    local options=(--build-arg "SUITE=$suite" --tag "$tag" --file "$here/Dockerfile") name certificates
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST; do
        if [[ -n ${!name:-} ]]; then options+=(--build-arg "$name"); fi
    done
    # Where this machine trusts an authority of its own, so must the image's pip.
    certificates=${PIP_CERT:-${SSL_CERT_FILE:-}}
    if [[ -n $certificates && $engine != docker ]]; then
        cp -L -- "$certificates" "$folder/certificates.pem"
        printf '[global]\ncert = /run/certificates.pem\n' >"$folder/pip.conf"
        options+=(--volume "$folder/certificates.pem:/run/certificates.pem:ro" --volume "$folder/pip.conf:/etc/pip.conf:ro")
    fi
    # As podman does by itself: a second build takes over what has not changed.
    if [[ $engine == buildah ]]; then options+=(--layers); fi
    say "building $tag with $("$engine" --version)"
    "$engine" build "${options[@]}" "$here" >"$folder/log" 2>&1 </dev/null ||
        { tail -n 20 "$folder/log" >&2; fail 1 "the build failed"; }
}

# Runs a command in the image as user 1000, who may not write into the checkout.
in_image() {
    local options=(--user 1000:1000 --volume "$checkout:$checkout:ro" --env "PYTHONPATH=$checkout"
        --env HOME=/tmp --env USER=hyco --env PYTHONDONTWRITEBYTECODE=1) name
    # Which kernels OpenBLAS takes may be set for this machine's processor.
    for name in OPENBLAS_CORETYPE OPENBLAS_L2_SIZE; do
        if [[ -n ${!name:-} ]]; then options+=(--env "$name=${!name}"); fi
    done
    case $engine in
        buildah) buildah run "${options[@]}" --workingdir "$checkout" "$container" -- /usr/bin/tini -s -- "$@" ;;
        *) "$engine" run --rm --shm-size 2g "${options[@]}" --workdir "$checkout" "$tag" "$@" ;;
    esac
}

settings
choose_engine
get_base
build
container=''
if [[ $engine == buildah ]]; then container=$(buildah from "$tag"); fi
# shellcheck disable=SC2016
in_image bash -c '[[ $(id -u) == 1000 && ! -w . ]] && python3 -c "
import dolfinx, slepc4py, gmsh, torch, checkpoint_schedules
print(f\"DOLFINx {dolfinx.__version__}, torch {torch.__version__}, user 1000\")"' || fail 1 "the image does not work"
in_image python3 -m pytest -q -m 'not slow' "${tests[@]}" || fail 1 "a test failed on one rank"
in_image mpirun -n 2 python3 -m mpi4py -m pytest -q -m 'not slow' "${tests[@]}" || fail 1 "a test failed on two ranks"
say "all right"
