"""docker/run finds a way to run, passes everything through, and says what is missing.

The engines and the tools of the root file system are stand-ins on a PATH of their own, so neither network nor
root is needed, and the answers are the same on a laptop, in a container and in the environment itself.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

DOOR = Path(__file__).resolve().parent.parent / "docker"

# The real tools that the scripts may call; whatever is not listed here or faked by a test does not exist.
REAL = [
    "awk", "basename", "bash", "cat", "chmod", "cut", "df", "dirname", "du", "env", "find", "flock", "grep",
    "head", "ls", "mkdir", "mv", "readlink", "rm", "sed", "setsid", "sha256sum", "sleep", "tail", "timeout",
    "touch", "tr", "true", "uname",
]  # fmt: skip

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(shutil.which("flock") is None, reason="docker/run is tested on Linux"),
]


class Host:
    """A machine with nothing but the programs that a test installs.

    Attributes:
        bin: the only directory on PATH.
        cache: HYCO_CACHE.
        calls: a file to which stand-ins write what they were asked.
        run: the script under test.
    """

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.cache = directory / "the cache"
        self.calls = directory / "calls"
        self.run = DOOR / "run"
        self.bin.mkdir()
        self.calls.touch()
        for name in REAL:
            found = shutil.which(name)
            assert found is not None, name
            (self.bin / name).symlink_to(found)
        self.user(1000)

    def install(self, name: str, script: str) -> None:
        """Put a bash stand-in on PATH; it notes its arguments first."""
        target = self.bin / name
        target.write_text(f"#!{self.bin / 'bash'}\nprintf '%s\\n' \"{name} $*\" >>'{self.calls}'\n{script}\n")
        target.chmod(0o755)

    def user(self, uid: int) -> None:
        self.install("id", f"echo {uid}")

    def python(self, *, complete: bool) -> None:
        """A python3 with (or without) what `native` asks for; that of a new root file system has all, and pip."""
        self.install("python3", f"[[ $2 == *create_unit_interval* || $2 == pip ]] || exit {0 if complete else 1}")

    def engine(self, name: str, *, runs: bool) -> None:
        """An engine whose `info` always succeeds and whose `run` runs the command here, or fails."""
        self.install(
            name,
            f"""
            record='{self.calls}.{name}'
            case "$1 $2" in
                info*) ;;
                'image inspect') [[ -e $record && $(<"$record") == "$3" ]] ;;
                build*) printf '%s' "$3" >"$record" ;;
                run*)
                    {"true" if runs else "echo cannot start containers >&2; exit 125"}
                    while [[ $1 != *-slim && $1 != hyco_fem:* ]]; do shift; done
                    shift
                    exec "$@" ;;
            esac""",
        )

    def root_tools(self) -> None:
        """Root, and stand-ins that make and enter a "root file system"."""
        self.user(0)
        self.install("chown", "")
        self.install("chroot", "")
        self.install("setpriv", 'shift 2; exec "$@"')
        # Entering: the command comes after `--` and the variables.
        self.install(
            "unshare",
            """
            [[ $* == '--mount true' ]] && exit
            while [[ $1 != -- ]]; do shift; done
            shift
            [[ $1 != bash ]] && exec "$@"
            while [[ $1 != -- ]]; do shift; done
            shift
            while [[ $1 == *=* ]]; do [[ $1 == PATH=* ]] || export "$1"; shift; done  # the stand-ins stay on PATH
            exec "$@" """,
        )
        self.install("mmdebstrap", 'for last; do :; done; mkdir -p "$last"')
        self.install("apt-get", "")  # asked for a keyring, where this machine has none
        self.python(complete=False)

    def call(
        self, *command: str, stdin: str = "", cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.run), *command], input=stdin, cwd=cwd, env=self.environment(**variables),
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": str(self.bin),
            "HOME": str(self.bin.parent),
            "HYCO_CACHE": str(self.cache),
            **variables,
        }

    def asked(self, name: str) -> list[str]:
        """The calls of one stand-in."""
        return [line for line in self.calls.read_text().splitlines() if line.startswith(f"{name} ")]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def copy_of_the_door(directory: Path) -> Path:
    return Path(shutil.copytree(DOOR, directory / "check out" / "docker"))


# --- usage


def test_without_a_command_it_explains_itself(host: Host) -> None:
    assert (result := host.call()).returncode == 64
    assert "usage: docker/run CMD" in result.stderr
    assert (result := host.call("--help")).returncode == 0
    assert "usage: docker/run CMD" in result.stdout
    assert host.call("--nonsense").returncode == 64


# --- choice


def test_native_comes_first(host: Host) -> None:
    host.python(complete=True)
    host.engine("docker", runs=True)
    result = host.call("bash", "-c", "echo $OMP_NUM_THREADS $PYTHONPATH")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["1", str(DOOR.parent)]
    assert host.asked("docker") == []


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_engine_that_runs_is_used(host: Host, engine: str) -> None:
    host.python(complete=False)
    host.engine(engine, runs=True)
    first = host.call("bash", "-c", "echo inside")
    assert (first.returncode, first.stdout) == (0, "inside\n")
    assert "first use" in first.stderr
    assert [c.split()[1] for c in host.asked(engine)].count("build") == 1
    # Later calls are silent: neither another build nor another trial.
    before = len(host.asked(engine))
    second = host.call("bash", "-c", "echo inside")
    assert (second.returncode, second.stdout, second.stderr) == (0, "inside\n", "")
    later = host.asked(engine)[before:]
    assert not any(c.startswith(f"{engine} build") for c in later)
    assert sum(c.startswith(f"{engine} run") for c in later) == 1


def test_an_engine_is_tried_with_run_not_with_info(host: Host) -> None:
    host.python(complete=False)
    host.engine("docker", runs=False)
    host.engine("podman", runs=True)
    result = host.call("bash", "-c", "echo inside")
    assert (result.returncode, result.stdout) == (0, "inside\n")
    assert any(c.startswith("docker run") for c in host.asked("docker"))
    assert not any(c.startswith("docker build") for c in host.asked("docker"))
    assert any(c.startswith("podman build") for c in host.asked("podman"))


def test_a_container_belongs_to_the_caller_and_sees_the_checkout(host: Host, tmp_path: Path) -> None:
    host.python(complete=False)
    host.engine("docker", runs=True)
    result = host.call("true", cwd=tmp_path, PETSC_DIR="/elsewhere", PETSC_OPTIONS="-log_view", HYCO_SEED="7")
    assert result.returncode == 0, result.stderr
    run = host.asked("docker")[-1]
    assert "--user 1000:1000" in run
    assert f"source={DOOR.parent},target={DOOR.parent}" in run
    assert f"source={tmp_path},target={tmp_path}" in run
    assert f"--workdir {tmp_path}" in run
    assert "--env PETSC_OPTIONS=-log_view" in run
    assert "--env HYCO_SEED=7" in run
    assert "PETSC_DIR" not in run


def test_hyco_fem_is_a_command_everywhere(host: Host, tmp_path: Path) -> None:
    """Without an install, and before one that there may be of another checkout."""
    host.python(complete=True)
    native = host.call("bash", "-c", "command -v hyco-fem")
    assert (native.returncode, native.stdout) == (0, f"{DOOR}/bin/hyco-fem\n")
    host.python(complete=False)
    host.engine("docker", runs=True)
    assert host.call("true").returncode == 0
    assert f"--env PATH={DOOR}/bin:/usr/local/sbin:/usr/local/bin:" in host.asked("docker")[-1]


def test_a_signal_ends_the_build_of_the_image(host: Host) -> None:
    host.python(complete=False)
    building = host.calls.with_name("building")
    host.install(
        "docker",
        f"""
        case $1 in
            image) exit 1 ;;
            build) echo $$ >'{building}.new'; mv '{building}.new' '{building}'; exec sleep 60 ;;
        esac""",
    )
    with subprocess.Popen([host.run, "true"], env=host.environment(), stderr=subprocess.DEVNULL) as call:
        while not building.exists():
            time.sleep(0.02)
            assert call.poll() is None
        call.terminate()
        assert call.wait(timeout=20) == 128 + signal.SIGTERM
    assert not Path(f"/proc/{building.read_text().strip()}").exists()


def test_a_failed_build_of_the_image_shows_its_log(host: Host) -> None:
    host.python(complete=False)
    host.install("docker", 'case $1 in image) exit 1 ;; build) echo "no such package"; exit 1 ;; esac')
    result = host.call("true")
    assert result.returncode == 69
    assert "no such package" in result.stderr


def test_nothing_possible_says_why_and_what_to_install(host: Host) -> None:
    host.python(complete=False)
    host.engine("docker", runs=False)
    result = host.call("true")
    assert result.returncode == 69
    assert result.stdout == ""
    for part in [
        "native: ",
        "cannot start containers",
        "podman is not installed",
        "needs root",
        "apt-get install",
    ]:
        assert part in result.stderr


# --- HYCO_ENV


def test_an_unknown_way_is_refused(host: Host) -> None:
    host.python(complete=True)
    result = host.call("true", HYCO_ENV="nativ")
    assert result.returncode == 64
    assert "native, docker, podman or rootfs" in result.stderr


@pytest.mark.parametrize(
    ("way", "remedy"),
    [
        ("native", "conda-forge: fenics-dolfinx"),
        ("docker", "cannot start containers"),
        ("podman", "install podman"),
        ("rootfs", "call it with sudo"),
    ],
)
def test_a_forced_way_that_is_impossible_is_not_replaced(host: Host, way: str, remedy: str) -> None:
    host.python(complete=way != "native")
    host.engine("docker", runs=False)
    result = host.call("true", HYCO_ENV=way)
    assert result.returncode == 69
    assert f"HYCO_ENV={way}" in result.stderr
    assert remedy in result.stderr


def test_a_forced_way_goes_before_native(host: Host) -> None:
    host.python(complete=True)
    host.engine("podman", runs=True)
    assert host.call("true", HYCO_ENV="podman").returncode == 0
    assert any(c.startswith("podman run") for c in host.asked("podman"))


# --- HYCO_SUITE


def test_an_unknown_suite_is_refused_with_the_list(host: Host) -> None:
    host.python(complete=True)
    result = host.call("true", HYCO_SUITE="bookworm")
    assert result.returncode == 64
    assert "HYCO_SUITE=bookworm is unknown: trixie or sid" in result.stderr


@pytest.mark.parametrize(("suite", "expected"), [("", "trixie"), ("trixie", "trixie"), ("sid", "sid")])
def test_a_suite_is_made_by_the_root_file_system_or_the_image(host: Host, suite: str, expected: str) -> None:
    host.root_tools()
    host.engine("docker", runs=True)
    assert host.call("true", HYCO_SUITE=suite, HYCO_ENV="rootfs").returncode == 0
    (made,) = host.asked("mmdebstrap")
    assert f" {expected} {host.cache}/rootfs-" in made
    # Only the unstable one is served for longer than its Release file allows.
    assert ("Check-Valid-Until" in made) == (expected == "sid")
    assert host.call("true", HYCO_SUITE=suite, HYCO_ENV="docker").returncode == 0
    (built,) = [call for call in host.asked("docker") if call.startswith("docker build ")]
    assert f"--build-arg SUITE={expected}" in built
    assert any(f"debian:{expected}-slim true" in call for call in host.asked("docker"))


def test_suites_live_beside_each_other_with_a_cache_of_compiled_forms_each(host: Host) -> None:
    host.root_tools()
    for suite in ("trixie", "sid", "", "sid"):
        assert host.call("true", HYCO_SUITE=suite).returncode == 0
        # Inside, HYCO_ENV=native leads to where one is: the suite has been chosen.
        assert "HYCO_ENV=native" in host.asked("unshare")[-1]
        assert "HYCO_SUITE" not in host.asked("unshare")[-1]
    assert len(host.asked("mmdebstrap")) == 2
    assert len(published(host)) == 2
    assert len(list(host.cache.glob("rootfs-*.jit/0"))) == 2


def test_a_suite_is_not_looked_for_among_what_is_installed(host: Host) -> None:
    host.python(complete=True)
    host.engine("docker", runs=True)
    assert host.call("true", HYCO_SUITE="trixie").returncode == 0
    assert any(call.startswith("docker build ") for call in host.asked("docker"))
    refused = host.call("true", HYCO_SUITE="trixie", HYCO_ENV="native")
    assert refused.returncode == 64
    assert "unset one of them" in refused.stderr
    (host.bin / "docker").unlink()
    nothing = host.call("true", HYCO_SUITE="trixie")
    assert nothing.returncode == 69
    assert "native: HYCO_SUITE=trixie asks for" in nothing.stderr


def test_a_day_on_which_sid_cannot_be_installed_is_named(host: Host) -> None:
    host.root_tools()
    host.install("mmdebstrap", "echo E: Unable to correct problems, you have held broken packages; exit 25")
    result = host.call("true", HYCO_SUITE="sid")
    assert result.returncode == 69
    assert "held broken packages" in result.stderr
    assert "try another day" in result.stderr
    assert "try another day" not in host.call("true").stderr


# --- what passes through


@pytest.mark.parametrize("way", ["native", "docker", "rootfs"])
def test_arguments_stdin_and_status_pass_through(host: Host, way: str) -> None:
    if way == "rootfs":
        host.root_tools()
    host.python(complete=way == "native")
    host.engine("docker", runs=True)
    words = ["two words", "it's", '"quoted"', "$HOME", "", "*", "a\nb"]
    result = host.call("bash", "-c", 'printf "%s|" "$@"; cat; exit 3', "bash", *words, stdin="from stdin", HYCO_ENV=way)
    assert result.returncode == 3, result.stderr
    assert result.stdout == "|".join(words) + "|from stdin"


def test_a_command_that_is_not_found(host: Host) -> None:
    host.python(complete=True)
    result = host.call("no-such-command")
    assert result.returncode == 127
    assert "no-such-command: command not found" in result.stderr


def test_what_the_user_has_set_stays(host: Host) -> None:
    host.python(complete=True)
    result = host.call("bash", "-c", "echo $OMP_NUM_THREADS $PYTHONPATH", OMP_NUM_THREADS="4", PYTHONPATH="/mine")
    assert result.stdout.split() == ["4", f"{DOOR.parent}:/mine"]


@pytest.mark.parametrize(
    ("version", "job", "btl", "policy", "mapby"),
    [
        ("mpirun (Open MPI) 5.0.7", "", "self,sm", ":oversubscribe", ""),
        ("mpirun (Open MPI) 6.0.0rc2", "", "self,sm", "", ":oversubscribe"),
        ("mpirun (Open MPI) 4.1.6", "", "", "", ""),
        ("HYDRA build details", "", "", "", ""),
        ("mpirun (Open MPI) 5.0.7", "12", "", "", ""),
    ],
)
def test_only_open_mpi_from_5_on_outside_a_batch_job_gets_defaults(
    host: Host, version: str, job: str, btl: str, policy: str, mapby: str
) -> None:
    host.python(complete=True)
    host.install("mpirun", f"echo '{version}'")
    names = ["OMPI_MCA_btl", "PRTE_MCA_rmaps_default_mapping_policy", "PRTE_MCA_mapby"]
    result = host.call("bash", "-c", 'for name; do echo "${!name-}"; done', "bash", *names, SLURM_JOB_ID=job)
    assert result.stdout.splitlines() == [btl, policy, mapby]


def test_it_works_through_a_link_and_with_spaces_in_the_path(host: Host, tmp_path: Path) -> None:
    host.python(complete=True)
    door = copy_of_the_door(tmp_path)
    host.run = tmp_path / "door"
    host.run.symlink_to(door / "run")
    result = host.call("bash", "-c", 'printf "%s\n%s" "$PYTHONPATH" "$PWD"', cwd=tmp_path)
    assert result.stdout.splitlines() == [str(door.parent), str(tmp_path)]


# --- the root file system


def published(host: Host) -> list[str]:
    return sorted(p.name for p in host.cache.glob("rootfs-*") if re.fullmatch(r"rootfs-[0-9a-f]{12}", p.name))


def test_the_root_file_system_is_made_once(host: Host) -> None:
    host.root_tools()
    first = host.call("bash", "-c", "exit 5")
    assert first.returncode == 5, first.stderr
    assert "first use" in first.stderr
    second = host.call("bash", "-c", "echo $HYCO_ENV $XDG_CACHE_HOME")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.split() == ["native", "/var/cache/hyco_fem"]
    assert len(host.asked("mmdebstrap")) == 1
    assert len(published(host)) == 1


def test_its_key_changes_with_the_packages_but_not_with_the_comments(host: Host, tmp_path: Path) -> None:
    host.root_tools()
    door = copy_of_the_door(tmp_path)
    host.run = door / "run"
    packages = door / "packages.txt"
    assert host.call("true").returncode == 0
    packages.write_text("# Why.\n" + packages.read_text())
    assert host.call("true").returncode == 0
    assert len(published(host)) == 1
    packages.write_text(packages.read_text() + "hello\n")
    assert host.call("true").returncode == 0
    assert len(published(host)) == 2
    assert ",hello " in host.asked("mmdebstrap")[-1]


def test_pypi_txt_is_installed_and_part_of_the_key(host: Host, tmp_path: Path) -> None:
    host.root_tools()
    door = copy_of_the_door(tmp_path)
    host.run = door / "run"
    pypi = door / "pypi.txt"
    pypi.write_text("# Why.\na==1\nb==2  # why\n")
    assert host.call("true").returncode == 0
    (pip,) = [call for call in host.asked("python3") if call.startswith("python3 -m pip install ")]
    assert pip.endswith(" a==1 b==2")
    assert "--no-deps" in pip
    pypi.write_text("a==1\nb==3\n")
    assert host.call("true").returncode == 0
    assert len(published(host)) == 2
    # An image is built anew as well.
    host.engine("docker", runs=True)
    for version in (3, 3, 4):
        pypi.write_text(f"a==1\nb=={version}\n")
        assert host.call("true", HYCO_ENV="docker", PIP_INDEX_URL="https://mirror.example/simple").returncode == 0
    builds = [call for call in host.asked("docker") if call.startswith("docker build ")]
    assert len(builds) == 2
    assert all("--build-arg PIP_INDEX_URL" in build for build in builds)


def test_without_pypi_the_build_fails_and_says_what_is_missing(host: Host) -> None:
    host.root_tools()
    host.install("python3", "[[ $2 == pip ]] && echo ERROR: No matching distribution found; exit 1")
    result = host.call("true")
    assert result.returncode == 69
    assert "No matching distribution" in result.stderr
    assert "could not install checkpoint-schedules==" in result.stderr
    assert "is PyPI" in result.stderr
    assert [p.suffix for p in host.cache.glob("rootfs-*")] == [".log"]


def test_native_is_not_complete_without_the_packages_of_pypi(host: Host) -> None:
    """The probe asks for every module by name, and each line of pypi.txt is one of them."""
    host.python(complete=True)
    assert host.call("true").returncode == 0
    probe = host.calls.read_text()
    for line in (DOOR / "pypi.txt").read_text().splitlines():
        if name := re.match(r"[\w-]+", line):
            assert name[0].replace("-", "_") in probe


def test_a_failed_build_leaves_nothing_but_its_log(host: Host) -> None:
    host.root_tools()
    host.install("mmdebstrap", 'for last; do :; done; mkdir -p "$last"; echo E: no network; exit 25')
    result = host.call("true")
    assert result.returncode == 69
    assert "E: no network" in result.stderr
    assert [p.suffix for p in host.cache.glob("rootfs-*")] == [".log"]
    host.install("mmdebstrap", 'for last; do :; done; mkdir -p "$last"')
    assert host.call("true").returncode == 0


def test_an_unfinished_build_is_removed_by_the_next(host: Host) -> None:
    host.root_tools()
    stale = host.cache / "rootfs-0123456789ab.building"
    stale.mkdir(parents=True)
    assert host.call("true").returncode == 0
    assert not stale.exists()


def test_a_second_first_call_waits_for_the_first(host: Host) -> None:
    host.root_tools()
    host.install("mmdebstrap", 'for last; do :; done; sleep 1; mkdir -p "$last"')
    env = host.environment()
    calls = [
        subprocess.Popen([host.run, "bash", "-c", f"exit {n}"], env=env, stderr=subprocess.PIPE, text=True)
        for n in (3, 4)
    ]
    messages = [call.communicate(timeout=30)[1] for call in calls]
    assert [call.returncode for call in calls] == [3, 4], messages
    assert sum("waiting for it" in m for m in messages) == 1
    assert len(host.asked("mmdebstrap")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_build(host: Host, number: signal.Signals) -> None:
    host.root_tools()
    host.install("mmdebstrap", 'for last; do :; done; mkdir -p "$last"; exec sleep 60')
    with subprocess.Popen([host.run, "true"], env=host.environment(), stderr=subprocess.DEVNULL) as call:
        while not list(host.cache.glob("*.building")):
            time.sleep(0.02)
            assert call.poll() is None
        call.send_signal(number)
        assert call.wait(timeout=20) == 128 + number
    assert list(host.cache.glob("rootfs-*")) == []


def test_too_little_space_is_said_before_anything_is_built(host: Host) -> None:
    host.root_tools()
    (host.bin / "df").unlink()
    host.install("df", "printf 'Filesystem 1024-blocks Used Available\\ndisk 9 9 1048576\\n'")
    result = host.call("true")
    assert result.returncode == 69
    assert "needs 4 GB" in result.stderr
    assert "1024 MB are free" in result.stderr
    assert host.asked("mmdebstrap") == []


def test_under_sudo_the_command_runs_as_the_caller(host: Host) -> None:
    host.root_tools()
    assert host.call("true", SUDO_UID="1234", SUDO_GID="1235").returncode == 0
    assert " 1234 1235 " in host.asked("unshare")[-1]


# --- compiled forms


def test_leftovers_of_killed_compiles_go_and_finished_ones_stay(host: Host) -> None:
    host.root_tools()
    assert host.call("true").returncode == 0
    (forms,) = host.cache.glob("rootfs-*.jit/0")
    forms = forms / "fenics"
    forms.mkdir()
    for name in ["killed.c", "killed.o", "done.c", "done.c.cached"]:
        (forms / name).touch()
    # While another run holds the cache, a young X.c may be a compile that is going on.
    with subprocess.Popen(
        [host.run, "bash", "-c", "echo; read -r"],
        env=host.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (forms / "going-on.c").touch()
        assert sorted(os.listdir(forms)) == ["done.c", "done.c.cached", "going-on.c"]
        assert host.call("true").returncode == 0
        assert (forms / "going-on.c").exists()
        other.communicate(b"\n")
    assert host.call("true").returncode == 0
    assert sorted(os.listdir(forms)) == ["done.c", "done.c.cached"]
