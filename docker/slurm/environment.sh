# shellcheck shell=bash
# What the job scripts of this folder have in common.  They source it; sbatch runs a copy of theirs from its own
# folder, so they find it by the folder that `sbatch` was called in, which is the checkout.
#
#   JOB_COMMAND      what to run, on one or many ranks, in bash's words; $SEED and the like are the job's
#   JOB_SETUP        a file to source first, for example one with the site's `module load …`
#   JOB_IMAGE        an image made from docker/apptainer.def: run JOB_COMMAND in it
#   JOB_LAUNCHER     srun or mpirun; by default srun where Slurm speaks PMIx, mpirun elsewhere and with docker/run
#   JOB_MPI          what to give `srun --mpi=` (pmix)
#   JOB_LOCAL        a folder on a disk of the node's own ($TMPDIR, or /tmp)
#   JOB_FORMS        the archive of compiled forms that jobs share (~/.cache/hyco_fem/forms-MACHINE.tar)
set -euo pipefail

say() { printf '%s: %s\n' "${SLURM_JOB_NAME:-job}" "$*" >&2; }
fail() { local status=$1; shift; say "$@"; exit "$status"; }

[[ -n ${SLURM_JOB_ID:-} ]] || fail 64 "this is a job script: give it to sbatch"
checkout=$SLURM_SUBMIT_DIR
nodes=${SLURM_NNODES:-1}
# shellcheck source=/dev/null
if [[ -n ${JOB_SETUP:-} ]]; then source "$JOB_SETUP"; fi

# --- threads -----------------------------------------------------------------------------------------------------

# What the job was given, whatever the shell that submitted it had set.  Since Slurm 22.05 srun has to be told again.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export OPENBLAS_NUM_THREADS=$OMP_NUM_THREADS MKL_NUM_THREADS=$OMP_NUM_THREADS SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS
export MPLBACKEND=Agg
export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
# `hyco-fem` is a command; an image has a PATH of its own, before which Apptainer puts this.
export PATH=$checkout/docker/bin:$PATH
export APPTAINERENV_PREPEND_PATH=$checkout/docker/bin SINGULARITYENV_PREPEND_PATH=$checkout/docker/bin

# --- compiled forms ----------------------------------------------------------------------------------------------

# FFCx compiles forms into XDG_CACHE_HOME.  On a shared disk ranks of several jobs wait for each other's locks, and a
# compile that is killed blocks all who come later.  So each job has a folder on each of its nodes, filled from one
# archive when it starts; new forms go into the archive when it ends.
forms=${JOB_LOCAL:-${TMPDIR:-/tmp}}/hyco_fem-$(id -u)-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
archive=${JOB_FORMS:-${XDG_CACHE_HOME:-$HOME/.cache}/hyco_fem/forms-$(uname -m).tar}
export XDG_CACHE_HOME=$forms

on_each_node() {
    if ((nodes > 1)); then srun --overlap --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "$@"; else "$@"; fi
}

# mkdir without --parents: in a /tmp that everybody writes, a folder that is there already may be anybody's.
# shellcheck disable=SC2016
fetch_forms() {
    on_each_node bash -c '
        mkdir -m 700 -- "$1" || exit
        if [[ -r $2 ]]; then tar --extract --file "$2" --directory "$1" --no-same-owner; fi
    ' fetch_forms "$forms" "$archive" || fail 73 "cannot make $forms: set JOB_LOCAL to a folder on the nodes' own disk"
}

# Called when no rank runs any more: what has no mark of completion by now was killed.
keep_forms() {
    local source known=0 temporary
    [[ -d $forms/fenics ]] || return 0
    for source in "$forms"/fenics/*.c; do
        [[ -e $source.cached ]] || rm -f -- "$source" "${source%.c}".o
    done
    if [[ -r $archive ]]; then
        tar --extract --skip-old-files --file "$archive" --directory "$forms" --no-same-owner
        known=$(tar --list --file "$archive" | grep -c '\.cached$') || true
    fi
    if (($(find "$forms/fenics" -name '*.cached' | wc -l) > known)); then
        mkdir -p -- "${archive%/*}"
        # Renamed when complete: a job that starts meanwhile reads the old one or the new one.
        temporary=$archive.$SLURM_JOB_ID
        tar --create --file "$temporary" --directory "$forms" fenics && mv -f -- "$temporary" "$archive"
    fi
}

drop_forms() { on_each_node rm -rf -- "$forms" || true; }

# --- MPI and the environment -------------------------------------------------------------------------------------

# Slurm binds ranks to the cores of the job.  mpirun would count from the node's first core, as do its neighbours.
export PRTE_MCA_hwloc_default_binding_policy=${PRTE_MCA_hwloc_default_binding_policy:-none}

# Sets `enter`, what stands before a command that needs the packages.
choose_environment() {
    enter=()
    if [[ -n ${JOB_IMAGE:-} ]]; then
        # Both names of the program are in use.  Home, /tmp and the current folder are there by default.
        local program
        program=$(command -v apptainer || command -v singularity) ||
            fail 69 "JOB_IMAGE needs apptainer on the compute nodes: load its module in JOB_SETUP"
        [[ -r $JOB_IMAGE ]] || fail 66 "there is no image $JOB_IMAGE: apptainer build it from docker/apptainer.def"
        enter=("$program" exec --bind "$checkout" --bind "$forms" "$JOB_IMAGE")
    elif ! python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("dolfinx") is None)' 2>/dev/null; then
        enter=("$checkout/docker/run")
    fi
}

choose_launcher() {
    launcher=${JOB_LAUNCHER:-}
    if [[ ${enter[0]:-} == */docker/run ]]; then
        ((nodes == 1)) || fail 64 "docker/run keeps to one node: give JOB_IMAGE, or modules in JOB_SETUP"
        [[ $launcher != srun ]] || fail 64 "docker/run hides Slurm's PMIx: leave JOB_LAUNCHER out, or give JOB_IMAGE"
        launcher=mpirun
    elif [[ -z $launcher ]]; then
        # Slurm lists pmix, pmix_v4 and the like, one a line.
        if [[ $(srun --mpi=list 2>&1) =~ [[:space:]]pmix ]]; then launcher=srun; else launcher=mpirun; fi
    fi
    case $launcher in srun | mpirun) ;; *) fail 64 "JOB_LAUNCHER=$launcher is unknown: srun or mpirun" ;; esac
}

# Sets `line`, the whole command.  $1: JOB_COMMAND where the user has set none.
choose_line() {
    local command=()
    choose_environment
    choose_launcher
    eval "command=(${JOB_COMMAND:-$1})"
    if [[ $launcher == srun ]]; then
        # One rank that has failed ends the others, which would wait for it.
        line=(srun "--mpi=${JOB_MPI:-pmix}" --kill-on-bad-exit=1 ${enter[@]+"${enter[@]}"} "${command[@]}")
    elif ((nodes > 1)); then
        line=(mpirun -n "$SLURM_NTASKS" ${enter[@]+"${enter[@]}"} "${command[@]}")
    else
        # Inside the environment, so its own MPI, which then needs nothing of Slurm: names of nodes may differ there.
        export PRTE_MCA_ras=^slurm PRTE_MCA_plm=^slurm PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
        line=(${enter[@]+"${enter[@]}"} mpirun -n "${SLURM_NTASKS:-1}" "${command[@]}")
    fi
}

# --- the job -----------------------------------------------------------------------------------------------------

# $1: JOB_COMMAND where the user has set none.
start_job() {
    cd -- "$checkout"
    choose_line "$1"
    say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on ${SLURM_JOB_NODELIST:-?}," \
        "${SLURM_NTASKS:-1} rank(s) of $OMP_NUM_THREADS thread(s): ${line[*]}"
    fetch_forms
    trap drop_forms EXIT
}

# Runs the command to its end, and ends the script with its status.
run_job() {
    local status=0
    start_job "$1"
    "${line[@]}" || status=$?
    keep_forms || say "the compiled forms were not kept in $archive"
    exit "$status"
}
