"""The job scripts of docker/slurm do what their README says, and the images for clusters have the same packages.

Slurm's programs are stand-ins here; docker/slurm/test_local.sh tries the scripts on a real Slurm, docker/test_image.sh
builds the image.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
DOCKER = CHECKOUT / "docker"
SLURM = DOCKER / "slurm"
JOBS = sorted(SLURM.glob("*.sbatch"))
SCRIPTS = [*JOBS, *sorted(SLURM.glob("*.sh")), DOCKER / "test_image.sh"]

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(shutil.which("flock") is None, reason="the scripts are for Linux"),
]


def named(path: Path) -> str:
    return path.name


class Cluster:
    """A node where srun, mpirun and scontrol are stand-ins, and Slurm's variables those of job 7.

    Attributes:
        calls: the file where stand-ins write what they were asked.
        disk: the node's own disk.
        archive: the archive of compiled forms.
    """

    def __init__(self, folder: Path, *, pmix: bool = True) -> None:
        self.bin, self.calls, self.disk, self.archive = (folder / n for n in ("bin", "calls", "disk", "forms.tar"))
        self.bin.mkdir()
        self.disk.mkdir()
        self.calls.touch()
        listed = "MPI plugin types are... none " + ("pmix pmix_v5" if pmix else "pmi2")
        self.install("srun", f'[[ $1 == --mpi=list ]] && {{ echo "{listed}"; exit; }}\n{LAUNCH}')
        self.install("mpirun", LAUNCH)
        self.install("scontrol", "")

    def install(self, name: str, script: str) -> None:
        """Put a stand-in on PATH that notes its arguments."""
        program = self.bin / name
        program.write_text(f"#!/bin/bash\nprintf '%s\\n' \"{name} $*\" >>'{self.calls}'\n{script}\n")
        program.chmod(0o755)

    def environment(self, command: str, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.disk), "OMP_NUM_THREADS": "8",
            "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(CHECKOUT), "SLURM_NNODES": "1", "SLURM_NTASKS": "2",
            "JOB_LOCAL": str(self.disk), "JOB_FORMS": str(self.archive), "JOB_COMMAND": command, "JOB_GRACE": "1",
        } | variables  # fmt: skip

    def start(self, job: str, command: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SLURM / f"{job}.sbatch")], env=self.environment(command, **variables),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, job: str, command: str, **variables: str) -> tuple[int, str, str]:
        """Exit status, output and errors of a job."""
        process = self.start(job, command, **variables)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    @property
    def asked(self) -> str:
        return self.calls.read_text()


# Options come first, and one rank is enough.
LAUNCH = 'while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"'


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


# -- the files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=named)
def test_scripts_are_valid_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False).stderr == b""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing() -> None:
    found = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True, check=False)
    assert found.stdout == ""


@pytest.mark.parametrize("job", JOBS, ids=named)
def test_directives_stand_where_sbatch_reads_them_and_name_known_options(job: Path) -> None:
    lines = job.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(directives) < first_command
    options = dict(re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", lines[n]).groups() for n in directives)  # type: ignore[union-attr]
    assert {"job-name", "nodes", "cpus-per-task", "hint", "time", "output"} <= options.keys()
    assert ("ntasks" in options) != ("ntasks-per-node" in options)
    assert options.keys() <= {
        "job-name", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "hint", "time", "output", "array",
        "requeue", "open-mode", "signal",
    }  # fmt: skip
    assert re.fullmatch(r"(\d+-)?\d\d:\d\d:\d\d", options["time"])
    assert "%j" in options["output"] or {"%A", "%a"} <= set(re.findall("%.", options["output"]))


def test_a_requeued_job_is_warned_in_time_for_its_checkpoint() -> None:
    text = (SLURM / "requeue.sbatch").read_text()
    warned = int(re.search(r"--signal=B:USR1@(\d+)", text).group(1))  # type: ignore[union-attr]
    grace = int(re.search(r"JOB_GRACE:-(\d+)", text).group(1))  # type: ignore[union-attr]
    assert warned >= grace + 30
    assert "#SBATCH --requeue\n" in text
    assert "#SBATCH --open-mode=append\n" in text


def test_the_readme_lists_the_variables_that_the_scripts_read() -> None:
    scripts = "".join(p.read_text() for p in [*JOBS, SLURM / "environment.sh"])
    readme = (SLURM / "README.md").read_text()
    table = "".join(line.split("|")[1] for line in readme.splitlines() if line.startswith("| `JOB_"))
    assert set(re.findall(r"JOB_[A-Z_]+", table)) == set(re.findall(r"\$\{?(JOB_[A-Z_]+)", scripts))


@pytest.mark.parametrize("job", JOBS, ids=named)
def test_the_default_command_is_a_demo_that_is_there(job: Path) -> None:
    demo = re.search(r"(?:run|start)_job 'python3 -m mpi4py (\S+\.py)", job.read_text())
    assert demo is not None
    assert (CHECKOUT / demo.group(1)).exists()


def without_comments(path: Path) -> str:
    lines = (line for line in path.read_text().splitlines() if not re.match(r" *#", line))
    return re.sub(r"\s+", " ", re.sub(r"\\\n", " ", "\n".join(lines)))


def test_both_images_install_the_same_lists_in_the_same_way() -> None:
    for pattern in (
        r"apt-get update (\$\(.*?\))",
        r"sed 's/#\.\*//' \S*/(packages\.txt) \| (DEBIAN_FRONTEND=noninteractive xargs apt-get install -y \S+)",
        r"python3 -m pip install (.*?) -r \S*/(pypi\.txt)",
        r"dpkg-excludes (/etc/dpkg/dpkg\.cfg\.d/hyco_fem)",
        r"(SUITE=trixie)",
        r"rm -rf (/var/lib/apt/lists/\*)",
    ):
        docker, apptainer = (re.findall(pattern, without_comments(DOCKER / n)) for n in ("Dockerfile", "apptainer.def"))
        assert len(docker) == 1, pattern
        assert docker == apptainer, pattern


def test_the_image_leaves_threads_and_mpi_to_the_job() -> None:
    # In Apptainer an image's %environment wins over the job's variables, whatever default it is written as.
    environment = without_comments(DOCKER / "apptainer.def").split("%environment")[1].split("%runscript")[0]
    assert re.findall(r"(\w+)=", environment) == ["LANG"]


# -- what a job does -------------------------------------------------------------------------------------------


def test_a_script_outside_of_a_job_says_what_to_do(cluster: Cluster) -> None:
    status, _, errors = cluster.run("single_node", "true", SLURM_JOB_ID="")
    assert status == 64
    assert "sbatch" in errors


def test_threads_are_what_the_job_was_given(cluster: Cluster) -> None:
    show = "bash -c 'echo $OMP_NUM_THREADS $SRUN_CPUS_PER_TASK'"
    assert cluster.run("single_node", show, SLURM_CPUS_PER_TASK="3")[1] == "3 3\n"
    assert cluster.run("single_node", show)[1] == "1 1\n"


def test_srun_starts_the_ranks_where_it_speaks_pmix(cluster: Cluster) -> None:
    assert cluster.run("several_nodes", "echo 'one word'", SLURM_NNODES="2")[:2] == (0, "one word\n")
    assert "srun --mpi=pmix --kill-on-bad-exit=1 echo one word" in cluster.asked
    assert "mpirun" not in cluster.asked


def test_mpirun_starts_the_ranks_elsewhere(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, pmix=False)
    assert cluster.run("single_node", "echo hello")[:2] == (0, "hello\n")
    assert "mpirun -n 2 echo hello" in cluster.asked


def test_an_unknown_launcher_is_refused(cluster: Cluster) -> None:
    status, _, errors = cluster.run("single_node", "true", JOB_LAUNCHER="ssh")
    assert status == 64
    assert "srun or mpirun" in errors


def test_a_job_of_several_nodes_does_not_use_docker_run(cluster: Cluster) -> None:
    cluster.install("python3", "exit 1")
    status, _, errors = cluster.run("several_nodes", "true", SLURM_NNODES="2")
    assert status == 64
    assert "JOB_IMAGE" in errors


def test_a_job_with_an_image_runs_each_rank_in_it(cluster: Cluster, tmp_path: Path) -> None:
    cluster.install("apptainer", 'while [[ $1 != *.sif ]]; do shift; done; shift; exec "$@"')
    image = tmp_path / "hyco_fem.sif"
    assert cluster.run("several_nodes", "true", SLURM_NNODES="2", JOB_IMAGE=str(image))[0] == 66
    image.touch()
    assert cluster.run("several_nodes", "echo hello", SLURM_NNODES="2", JOB_IMAGE=str(image))[:2] == (0, "hello\n")
    assert re.search(rf"srun .* {cluster.bin}/apptainer exec --bind .* {image} echo hello", cluster.asked)


def test_the_seed_of_a_task_is_its_number(cluster: Cluster) -> None:
    assert cluster.run("array_over_seeds", 'echo "seed $SEED"', SLURM_ARRAY_TASK_ID="11")[1] == "seed 11\n"


def test_a_failed_command_fails_the_job_with_its_status(cluster: Cluster) -> None:
    assert cluster.run("single_node", "bash -c 'exit 3'")[0] == 3


# -- compiled forms --------------------------------------------------------------------------------------------

COMPILE = (
    """bash -c 'mkdir -p $XDG_CACHE_HOME/fenics; cd $XDG_CACHE_HOME/fenics; ls; touch {0}.c {0}.c.cached killed.c'"""
)


def test_forms_of_one_job_are_there_in_the_next_and_killed_compiles_are_not(cluster: Cluster) -> None:
    assert cluster.run("single_node", COMPILE.format("first"))[:2] == (0, "")
    assert cluster.run("single_node", COMPILE.format("second"))[:2] == (0, "first.c\nfirst.c.cached\n")
    with tarfile.open(cluster.archive) as archive:
        kept = {Path(name).name for name in archive.getnames()}
    assert kept == {"fenics", "first.c", "first.c.cached", "second.c", "second.c.cached"}
    assert list(cluster.disk.iterdir()) == []


def test_forms_are_not_fetched_into_a_folder_that_somebody_else_made(cluster: Cluster) -> None:
    (cluster.disk / f"hyco_fem-{os.getuid()}-7-0").mkdir()
    status, _, errors = cluster.run("single_node", "true")
    assert status == 73
    assert "JOB_LOCAL" in errors


# -- restarts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "restarted"),
    [("true", 0, False), ("exit 3", 3, False), ("exit 75", 0, True), ("kill -KILL $$", 0, True)],
)
def test_what_fails_by_itself_is_not_started_again(
    cluster: Cluster, command: str, status: int, restarted: bool
) -> None:
    assert cluster.run("requeue", f"bash -c '{command}'")[0] == status
    assert ("scontrol requeue 7" in cluster.asked) == restarted


def test_restarts_come_to_an_end(cluster: Cluster) -> None:
    status, _, errors = cluster.run("requeue", "bash -c 'exit 75'", JOB_MAX_RESTARTS="2", SLURM_RESTART_COUNT="2")
    assert status == 75
    assert "JOB_MAX_RESTARTS" in errors
    assert "scontrol requeue" not in cluster.asked


@pytest.mark.parametrize(("ending", "restarted"), [("exit 0", False), ("exit 75", True), ("written=true", True)])
def test_near_the_limit_the_ranks_write_and_what_is_not_done_is_started_again(
    cluster: Cluster, tmp_path: Path, ending: str, restarted: bool
) -> None:
    script = tmp_path / "command.sh"
    # scontrol makes Slurm end the job, here by TERM to the command.
    script.write_text(f"trap 'touch {tmp_path}/written; {ending}' USR1\ntouch {tmp_path}/ready\n{LOOP}")
    cluster.install("scontrol", f"kill -TERM $(<{tmp_path}/pid) 2>/dev/null || true")
    process = cluster.start("requeue", f"bash {script} {tmp_path}/pid")
    until = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert (tmp_path / "written").exists()
    assert ("scontrol requeue 7" in cluster.asked) == restarted
    assert not any(cluster.disk.iterdir())


LOOP = "echo $$ >$1\nfor ((i = 0; i < 300; i++)); do sleep 0.1; done\n"


# -- the scripts that try them on real programs ----------------------------------------------------------------


@pytest.mark.parametrize("script", [SLURM / "test_local.sh", DOCKER / "test_image.sh"], ids=named)
def test_a_trial_says_how_it_is_used_and_what_is_missing(cluster: Cluster, script: Path) -> None:
    def call(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(script), *arguments], env={"PATH": f"{cluster.bin}:{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    cluster.install("id", "echo 1000")
    for program in ("podman", "docker", "buildah"):
        cluster.install(program, "echo no service >&2; exit 1")
    assert call("--unknown")[0] == 64
    assert "Exit status" in call("--help")[1]
    status, said = call()
    assert status == 69
    assert "root" in said


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("slurmctld") is None, reason="needs root, slurmctld and slurmd")
def test_the_scripts_work_on_a_slurm() -> None:
    command = ["bash", str(SLURM / "test_local.sh"), "single", "array"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
