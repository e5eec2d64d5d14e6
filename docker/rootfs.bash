# shellcheck shell=bash disable=SC2154
# Builds the root file system; sourced by docker/run on first use, so that a signal to docker/run ends the build.

# mmdebstrap ignores TERM until it is done.  As a child of PID 1 of its own namespace, it ends with everything
# that it started when unshare is killed, also when docker/run itself is killed with KILL (--pdeathsig).  In a
# session of its own it does not see the terminal's Ctrl-C, which is for docker/run to answer.
in_a_namespace() {
    umask 022 # that of the caller may hide the files from other users
    exec setpriv --pdeathsig KILL setsid \
        unshare --mount --pid --fork --kill-child=KILL --mount-proc -- "$@"
}

abandon() {
    trap - EXIT INT TERM HUP
    if [[ -n ${job:-} ]]; then
        kill -KILL "$job" 2>/dev/null || true
        wait "$job" 2>/dev/null || true
    fi
    if [[ -n $building ]]; then
        remove_tree "$building"
        # Of an interrupted build nobody wants the log; of a failed one, yes.
        if (($1 > 128)); then rm -f -- "$log"; fi
    fi
    exit "$1"
}

# What killed processes still write may make the first attempt fail.
remove_tree() { rm -rf --one-file-system -- "$1" 2>/dev/null || { sleep 1; rm -rf --one-file-system -- "$1"; }; }

build_failed() {
    tail -n 20 "$log" >&2
    say "$1; the whole log is $log$(sid_hint)"
    abandon 69
}

install_mmdebstrap() {
    local wanted=()
    have mmdebstrap || wanted+=(mmdebstrap)
    compgen -G '/usr/share/keyrings/debian-archive-keyring.*' >/dev/null || wanted+=(debian-archive-keyring)
    if ((${#wanted[@]} == 0)); then return; fi
    say "installing ${wanted[*]} with apt-get"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${wanted[@]}"; } \
        >>"$log" 2>&1 </dev/null || build_failed "apt-get could not install ${wanted[*]}"
}

# The new system's own pip installs pypi.txt: it is the version that matches, and no pip is asked of the host.  What
# rootfs-enter makes of the tree is thrown away with its mounts, except for $building/usr, mounted where the cache
# would be: Debian's pip puts files in PREFIX/local/lib/python3.X/dist-packages.  PIP_USER and the like would forbid that.
install_from_pypi() {
    local configuration=() directory home=${HOME:-/root}
    for directory in "$home/.config/pip" "$home/.pip"; do
        if [[ -d $directory ]]; then configuration+=("$directory"); fi
    done
    inside_variables "$home" /tmp
    # shellcheck disable=SC2046 # one word a requirement
    in_a_namespace bash "$here/rootfs-enter" "$building" "$cache/mnt" "$building/usr" 0 0 / \
        ${configuration[@]+"${configuration[@]}"} -- "${variables[@]}" PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 \
        python3 -m pip install --no-deps --no-cache-dir --root-user-action ignore --retries 7 \
        --prefix /var/cache/hyco_fem $(names pypi.txt)
}

# The parts that break first when something was left out: imports, MPI, a compile and a link.
works() {
    in_a_namespace bash "$here/rootfs-enter" "$building" "$cache/mnt" "$building/tmp" 0 0 / -- \
        HOME=/root XDG_CACHE_HOME=/tmp OMP_NUM_THREADS=1 python3 -c '
import PIL.Image, checkpoint_schedules, dolfinx, gmsh, petsc4py.PETSc, torch, ufl
from mpi4py import MPI
mesh = dolfinx.mesh.create_unit_interval(MPI.COMM_SELF, 2)
dolfinx.fem.form(ufl.CellVolume(mesh) * ufl.dx)
'
}

build_rootfs() {
    local free options=()
    # Mirrors may serve a sid that is older than its Release file allows; it is signed all the same.
    if [[ $suite == sid ]]; then options=(--aptopt='Acquire::Check-Valid-Until "false"'); fi
    building='' job='' log=$rootfs.log
    trap 'abandon 130' INT
    trap 'abandon 143' TERM
    trap 'abandon 129' HUP
    mkdir -p -- "$cache/mnt"
    # One build at a time.  The lock ends with this process, since the builders do not inherit it.
    exec 9>"$cache/lock"
    flock --nonblock 9 || { say "another docker/run is setting up; waiting for it"; attended flock 9; }
    if [[ -d $rootfs ]]; then
        trap - INT TERM HUP
        exec 9>&-
        return
    fi

    # Holding the lock, any unfinished build is that of a run that was killed.
    local stale
    for stale in "$cache"/rootfs-*.building; do
        if [[ -d $stale ]]; then remove_tree "$stale"; fi
    done
    free=$(df -Pk -- "$cache" | awk 'NR == 2 { print int($4 / 1024) }')
    ((free >= 4096)) || fail 69 "setting up needs 4 GB in $cache, where ${free} MB are free: make room or set HYCO_CACHE"
    building=$rootfs.building
    : >"$log"
    install_mmdebstrap
    say "first use: making a Debian $suite root file system in $cache, which takes about two minutes"
    attended in_a_namespace mmdebstrap --variant=minbase --dpkgopt="$here/dpkg-excludes" ${options[@]+"${options[@]}"} \
        --include="$(names packages.txt | tr ' ' ,)" "$suite" "$building" >>"$log" 2>&1 9>&- ||
        build_failed "mmdebstrap failed"
    attended install_from_pypi >>"$log" 2>&1 9>&- ||
        build_failed "pip could not install $(names pypi.txt): is PyPI, or the index that pip is configured for, reachable?"
    attended works >>"$log" 2>&1 9>&- ||
        build_failed "the new root file system does not work"
    mv -T -- "$building" "$rootfs"
    trap - INT TERM HUP
    rm -f -- "$log"
    exec 9>&-
    say "done: $(du -sh -- "$rootfs" | cut -f 1) in $rootfs"
}
