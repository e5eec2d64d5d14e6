#!/usr/bin/env bash
# Tries the job scripts of this folder on a Slurm of its own, of Debian's packages: see usage() below.
set -euo pipefail

here=$(cd -P -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
checkout=${here%/docker/slurm}
packages=(slurmctld slurmd slurm-client munge)

usage() {
    cat <<USAGE
usage: docker/run bash docker/slurm/test_local.sh [--install] [--keep FOLDER] [TEST…]

Starts munge, slurmctld and two slurmd (two nodes on this machine) in a private folder, gives sbatch each script with
a small demo, looks at what came out, kills a rank of one job and lets its time run out, and stops everything.
TEST: single, several, array, requeue; by default all.  Five to ten minutes.

    --install      apt-get install what is missing of ${packages[*]}; also done where CI is set, and
                   inside of docker/run, from where nothing of it stays
    --keep FOLDER  logs and outputs go there and stay

Needs root, and python3 with DOLFINx and torch: docker/run gives both to root, not to who calls it with sudo.
Exit status: 0 all right; 1 a test failed; 64 wrong usage; 69 something is missing.
USAGE
}

say() { printf 'test_local: %s\n' "$*"; }
fail() { local status=$1; shift; say "$@" >&2; exit "$status"; }

install=${CI:+true} keep='' tests=()
while (($#)); do
    case $1 in
        --install) install=true ;;
        --keep) keep=$(realpath -m -- "${2:?--keep needs a folder}") && shift ;;
        --help | -h) usage; exit 0 ;;
        single | several | array | requeue) tests+=("$1") ;;
        *) usage >&2; exit 64 ;;
    esac
    shift
done
((${#tests[@]})) || tests=(single several array requeue)

# --- what it needs -----------------------------------------------------------------------------------------------

[[ $(id -u) == 0 ]] || fail 69 "needs root: munge and slurmd do"
python3 -c 'import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in ("dolfinx", "torch")))' ||
    fail 69 "python3 has no DOLFINx or no torch: call it as docker/run bash docker/slurm/test_local.sh"
# Inside of docker/run, / is thrown away with the command.
if [[ ${HYCO_ENV:-} == native && $(stat --file-system --format %T /) == overlayfs ]]; then install=true; fi
missing=()
for program in slurmctld slurmd sbatch munged; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if ((${#missing[@]})); then
    [[ -n $install ]] || fail 69 "${missing[*]} missing: call it with --install, or apt-get install ${packages[*]}"
    say "installing ${packages[*]}"
    # Debian would start them as services.
    log=$(mktemp)
    { apt-get update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends "${packages[@]}"; } \
        >"$log" 2>&1 </dev/null || { tail -n 5 "$log" >&2; fail 69 "apt-get could not install ${packages[*]}"; }
    rm -f -- "$log"
fi

# In a process namespace of its own: whatever happens to this script, no daemon outlives it.
separate=(unshare --mount --pid --fork --kill-child=KILL --mount-proc --propagation private)
if [[ -z ${TEST_LOCAL_INSIDE:-} ]]; then
    "${separate[@]}" true 2>/dev/null || fail 69 "this root may not mount (a container without CAP_SYS_ADMIN?)"
    export TEST_LOCAL_INSIDE=1
    exec "${separate[@]}" -- bash "${BASH_SOURCE[0]}" ${keep:+--keep "$keep"} "${tests[@]}"
fi

# --- a Slurm -----------------------------------------------------------------------------------------------------

folder=${keep:-$(mktemp -d)}
mkdir -p -- "$folder"/{log,spool,state,out,local}
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)
port=$((20000 + RANDOM % 10000))
daemons=()

# As daemons of this script, in the foreground, so that it knows their ids.
start() {
    local name=$1; shift
    "$@" >"$folder/log/$name.out" 2>&1 </dev/null &
    daemons+=($!)
}

stop() {
    local status=$? daemon
    trap - EXIT
    for ((daemon = ${#daemons[@]} - 1; daemon >= 0; daemon--)); do kill "${daemons[daemon]}" 2>/dev/null || true; done
    wait ${daemons[@]+"${daemons[@]}"} || true
    if [[ -z $keep ]]; then rm -rf -- "$folder"; fi
    exit "$status"
}
trap stop EXIT
trap 'exit 143' INT TERM HUP

# slurmd refuses to start where it cannot manage cgroups; nothing here needs them.
write_configuration() {
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
CompleteWait=0
SchedulerParameters=bf_interval=2,sched_interval=2
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobs
NodeName=node[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=4 RealMemory=2000
PartitionName=test Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
    printf 'CgroupPlugin=disabled\n' >"$folder/cgroup.conf"
}

start_slurm() {
    local second node
    write_configuration
    (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
    # Folders that others may write to are fine here.
    start munged munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/log/munged" --seed-file="$folder/munge.seed"
    for ((second = 0; second < 20; second++)); do [[ -S $folder/munge.socket ]] && break; sleep 0.5; done
    start slurmctld slurmctld -D -i
    # Each with a disk of its own at $folder/local.
    for node in node1 node2; do
        # shellcheck disable=SC2016
        start "$node" unshare --mount --propagation private bash -c 'mount -t tmpfs node "$1" && exec slurmd -D -N "$2"' \
            slurmd "$folder/local" "$node"
    done
    for ((second = 0; second < 60; second++)); do
        [[ $(sinfo --noheader --format %t 2>/dev/null) == idle ]] && return
        sleep 1
    done
    tail -n 5 "$folder"/log/*.out >&2
    fail 1 "Slurm has not started within a minute"
}

# --- the tests ---------------------------------------------------------------------------------------------------

# What these jobs must see; the two "nodes" share one network interface, and have no fast network.
settings() {
    unset "${!SLURM_@}" "${!OMPI_MCA_@}" "${!PRTE_MCA_@}" OMP_NUM_THREADS
    export SLURM_CONF=$folder/slurm.conf JOB_LOCAL=$folder/local JOB_FORMS=$folder/forms.tar
    export OMPI_MCA_btl=self,sm,tcp OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_mpi_yield_when_idle=1
    cd -- "$checkout"
}

# $1: the name of the test and of its outputs; the rest for sbatch.  Waits for the job, and shows what it said if it failed.
submit() {
    local name=$1 status; shift
    timeout 300 sbatch --wait --quiet --output="$folder/out/$name-%a.out" "$@" || {
        status=$?
        squeue >&2
        tail -n 30 "$folder/out/$name"-*.out >&2
        fail 1 "$name: the job failed with status $status"
    }
}

# $1: the name of the test; $2: what its output has to have in it.
expect() {
    grep -q -- "$2" "$folder/out/$1"-*.out || { tail -n 30 "$folder/out/$1"-*.out >&2; fail 1 "$1: not in the output: $2"; }
}

demo="python3 -m mpi4py demos/plate_with_hole.py --rounds 3 --out"

try_single() {
    JOB_COMMAND="$demo $folder/single" submit single --ntasks=2 "$here/single_node.sbatch"
    expect single '2 rank(s), 1 thread(s) each'
    [[ -s $folder/single/summary.json && -s $folder/forms.tar ]] || fail 1 "single: summary or compiled forms are missing"
    JOB_LAUNCHER=mpirun JOB_COMMAND="$demo $folder/mpirun" submit mpirun --ntasks=2 "$here/single_node.sbatch"
    expect mpirun '2 rank(s), 1 thread(s) each'
    grep -q ': srun --mpi=pmix' "$folder"/out/single-*.out || fail 1 "single: Slurm has PMIx, and srun was not used"
    say "single_node.sbatch: two ranks by srun and by mpirun"
}

try_several() {
    JOB_COMMAND="$demo $folder/several" submit several --ntasks-per-node=1 "$here/several_nodes.sbatch"
    expect several 'on node\[1-2\]'
    expect several '2 rank(s), 1 thread(s) each'
    say "several_nodes.sbatch: two ranks on two nodes"
}

try_array() {
    # shellcheck disable=SC2016
    JOB_COMMAND='python3 -c "print(\"seed $SEED of task $SLURM_ARRAY_TASK_ID\")"' submit array --array=3,5 "$here/array_over_seeds.sbatch"
    expect array 'seed 3 of task 3'
    expect array 'seed 5 of task 5'
    say "array_over_seeds.sbatch: two seeds"
}

# Counts rounds on all ranks, and goes on from its checkpoint: what requeue.sbatch asks of a command.
write_counter() {
    cat >"$folder/counter.py" <<'PYTHON'
import os, signal, sys, time
from pathlib import Path

from mpi4py import MPI

comm, folder, rounds = MPI.COMM_WORLD, Path(sys.argv[1]), int(sys.argv[2])
asked = []
for wanted in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(wanted, lambda number, frame: asked.append(signal.Signals(number).name))
checkpoint = folder / "checkpoint"


def log(text):
    with (folder / "log").open("a") as file:
        file.write(text + "\n")


first = comm.bcast(int(checkpoint.read_text()) if comm.rank == 0 and checkpoint.exists() else 0)
(folder / f"pid{comm.rank}").write_text(str(os.getpid()))
if comm.rank == 0:
    log(f"start at {first}")
for done in range(first + 1, rounds + 1):
    time.sleep(0.25)
    signals = comm.allgather(asked)
    asked.clear()
    names = {name for each in signals for name in each}
    if comm.rank == 0 and (names or done % 4 == 0 or done == rounds):
        (folder / "new").write_text(str(done))
        (folder / "new").replace(checkpoint)
        for name in sorted(names):
            log(f"{name} on {sum(name in each for each in signals)} at {done}")
    if "SIGTERM" in names:
        break
else:
    if comm.rank == 0:
        log(f"done at {done}")
PYTHON
}

# Waits until the log of a counter says something.  $1: its folder; $2: what; $3: how often.
await() {
    local second
    for ((second = 0; second < 150; second++)); do
        if [[ -e $1/log ]] && (($(grep -c -- "$2" "$1/log") >= $3)); then return; fi
        sleep 1
    done
    squeue >&2
    tail -n 30 "$1/log" "$folder"/out/requeue*.out >&2
    fail 1 "requeue: has not come to pass: $2"
}

# Three starts: a rank of the first is killed, the second runs into the time limit, the third ends the run.
try_requeue_by() {
    local run=$folder/requeue-$1 log
    mkdir -p -- "$run"
    JOB_LAUNCHER=$1 JOB_GRACE=5 JOB_COMMAND="python3 -m mpi4py $folder/counter.py $run 240" submit "requeue-$1" \
        --ntasks=2 --time=1 --signal=B:USR1@10 "$here/requeue.sbatch" &
    await "$run" 'start at' 1
    sleep 3
    kill -KILL "$(<"$run/pid1")"
    await "$run" 'start at' 2
    await "$run" 'SIGUSR1 on 2' 1
    await "$run" 'start at' 3
    wait $! || exit
    log=$(<"$run/log")
    [[ $log == *'done at 240' && $(grep -c 'start at' "$run/log") == 3 ]] || fail 1 "requeue: not done at the third start: $log"
    say "requeue.sbatch by $1: $(tr '\n' ',' <<<"$log")"
}

# What fails by itself is not started again; what asks for it is, as often as is allowed.
try_requeue_status() {
    local status=0 asks="echo start >>$folder/asks && exit 75"
    JOB_COMMAND="python3 -c 'raise SystemExit(3)'" JOB_LAUNCHER=srun sbatch --wait --quiet --ntasks=1 \
        --output="$folder/out/failing.out" "$here/requeue.sbatch" || status=$?
    if [[ $status != 3 ]] || grep 'back into' "$folder/out/failing.out"; then
        fail 1 "requeue: status $status of what fails with 3"
    fi
    JOB_COMMAND="bash -c '$asks'" JOB_LAUNCHER=srun JOB_MAX_RESTARTS=1 sbatch --wait --quiet --ntasks=1 \
        --output="$folder/out/asking.out" "$here/requeue.sbatch" || status=$?
    [[ $status == 75 && $(grep -c start "$folder/asks") == 2 ]] || fail 1 "requeue: status $status of what asks for more"
    say "requeue.sbatch: status 3 ends the job, status 75 starts it again"
}

# The demo, with the signal of the limit sent by hand: no round is missing or there twice.  So many rounds that it is not
# done within JOB_GRACE.
try_requeue_demo() {
    local run=$folder/restart rounds=3000 second
    JOB_LAUNCHER=srun JOB_GRACE=5 JOB_COMMAND="python3 -m mpi4py demos/restart.py --rounds $rounds --out $run" submit restart \
        --ntasks=2 "$here/requeue.sbatch" &
    for ((second = 0; second < 60; second++)); do
        if (($(cat "$run"/history.csv* 2>/dev/null | wc -l) > 50)); then break; fi
        sleep 1
    done
    scancel --batch --signal=USR1 "$(squeue --noheader --format %i)"
    wait $! || exit
    expect restart 'goes on at round [1-9]'
    expect restart "$rounds rounds"
    [[ $(cut -d , -f 1 "$run/history.csv" | grep -E '^[0-9]+$' | sort -u | wc -l) == "$rounds" &&
        $(grep -cE '^[0-9]' "$run/history.csv") == "$rounds" ]] || fail 1 "requeue: rounds of demos/restart.py are missing"
    say "requeue.sbatch: demos/restart.py $(grep -h -o 'goes on at round [0-9]*' "$folder"/out/restart-*.out) of $rounds"
}

try_requeue() {
    try_requeue_status
    try_requeue_demo
    write_counter
    try_requeue_by mpirun
    try_requeue_by srun
}

start_slurm
settings
say "$(slurmd -V), $(mpirun --version | head -n 1), nodes node1 and node2"
for name in "${tests[@]}"; do "try_$name"; done
say "all right"
