"""Scripts end well: one message for all ranks, a status that is not zero, and no hang; as a user starts them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI

import pytest

import hyco_fem as hf

ROOT = Path(__file__).parent.parent

# What a user sets for all of MPI, as opposed to what an mpirun around these tests tells its ranks.
_SETTINGS = (
    "OMPI_ALLOW_RUN_AS_ROOT",
    "OMPI_MCA_btl",
    "OMPI_MCA_mpi_yield_when_idle",
    "PRTE_MCA_rmaps_default",
    "PRTE_MCA_mapby",
)


def environment() -> dict[str, str]:
    """Variables for programs of their own, which know nothing of an mpirun or pytest around them."""
    inner = ("OMPI_", "PRTE_", "PMIX_", "PMI_", "HYDRA_", "PYTEST_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(inner) or k.startswith(_SETTINGS)}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def mpirun(
    ranks: int, *command: str | Path, cwd: Path, module: tuple[str, ...] = ("-m", "mpi4py"), timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """`mpirun -n RANKS python3 -m mpi4py COMMAND` in a folder; one that hangs is stopped and fails the test."""
    if shutil.which("mpirun") is None:
        pytest.skip("needs mpirun")
    open_mpi = "Open MPI" in MPI.Get_library_version()
    launch = ["mpirun", "-n", str(ranks), *(["--oversubscribe"] if open_mpi else []), sys.executable, *module]
    process = subprocess.Popen(
        [*launch, *map(str, command)],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # mpirun passes it on to its ranks
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        pytest.fail(f"still running after {timeout} s: {process.args}\n{out}\n{err}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def errors(run: subprocess.CompletedProcess[str]) -> list[str]:
    """Lines that tell of an error of the script; mpirun adds some of its own."""
    return [line for line in (run.stdout + run.stderr).splitlines() if line.startswith(("error:", "rank "))]


def tracebacks(run: subprocess.CompletedProcess[str]) -> int:
    return (run.stdout + run.stderr).count("Traceback (most recent call last)")


# -- in this process -------------------------------------------------------------------------------------------


def ends(main: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Status and standard error of run_script(main)."""
    with pytest.raises(SystemExit) as caught:
        hf.run_script(main)
    return caught.value.code, capsys.readouterr().err


def test_an_error_of_all_ranks_is_told_in_one_line_by_rank_0(
    comm: MPI.Comm, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = (ValueError, OSError, RuntimeError, FloatingPointError)
    for kind in (*kinds, hf.SolveError, hf.CoefficientError, hf.OutsideError):

        def main(kind: type[Exception] = kind) -> None:
            raise kind("the mesh has no cells")

        status, told = ends(main, capsys)
        assert status == 1
        assert told == ("error: the mesh has no cells\n" if comm.rank == 0 else "")


def test_a_defect_is_shown_with_its_traceback(comm: MPI.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = ends(lambda: 1 / 0, capsys)
    assert status == 1
    if comm.rank == 0:
        assert told.startswith("Traceback (most recent call last)")
        assert told.rstrip().endswith("ZeroDivisionError: division by zero")
        assert "error: " not in told
    else:
        assert told == ""


def test_a_script_without_errors_just_ends(comm: MPI.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    hf.run_script(lambda: seen.append(comm.allreduce(1)))
    assert seen == [comm.size]
    assert capsys.readouterr().err == ""


def test_a_status_that_the_script_chooses_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(lambda: sys.exit(3), capsys) == (3, "")


# -- as programs -----------------------------------------------------------------------------------------------

SCRIPT = """\
import os, sys, time
from mpi4py import MPI
import hyco_fem as hf

comm = MPI.COMM_WORLD

def main():
    what = sys.argv[1]
    if what == "all":
        time.sleep(0.5 * comm.rank)  # not all at once
        raise ValueError("the mesh has no cells")
    if what == "one":
        if comm.rank == comm.size - 1:
            raise ValueError("only here")
        comm.Barrier()
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "defect":
        return [][comm.size]
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))

hf.run_script(main)
"""

serial = pytest.mark.serial


def test_a_slip_in_the_script_shows_where_it_is(comm: MPI.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        len(None)  # type: ignore[arg-type]

    status, told = ends(main, capsys)
    assert status == 1
    assert ("test_script.py" in told and "len(None)" in told) if comm.rank == 0 else told == ""


@serial
def test_the_log_of_the_package_is_printed_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import hyco_fem as hf\n"
        "from mpi4py import MPI\n"
        "from dolfinx import mesh\n"
        "def main():\n"
        "    domain = mesh.create_unit_square(MPI.COMM_WORLD, 3, 3)\n"
        "    for _ in range(3):\n"
        "        hf.PhysicalModel.of(hf.catalogue.poisson(domain)).solve()\n"
        "hf.run_script(main)\n"
    )
    run = mpirun(2, script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    told = [line for line in run.stdout.splitlines() if line.startswith("hyco_fem: ")]
    assert len(told) == 1
    assert "'u': 16 dofs, symmetric, 2 rank(s): cholesky (mumps)" in told[0]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@serial
@pytest.mark.slow
@pytest.mark.parametrize("module", [("-m", "mpi4py"), ()], ids=["mpi4py", "plain"])
def test_ranks_that_all_fail_tell_it_once(script: Path, module: tuple[str, ...]) -> None:
    run = mpirun(2, script, "all", cwd=script.parent, module=module)
    assert run.returncode == 1
    assert errors(run) == ["error: the mesh has no cells"]
    assert tracebacks(run) == 0


@serial
@pytest.mark.slow
@pytest.mark.parametrize("module", [("-m", "mpi4py"), ()], ids=["mpi4py", "plain"])
def test_one_rank_that_fails_ends_all_with_its_traceback(script: Path, module: tuple[str, ...]) -> None:
    run = mpirun(3, script, "one", cwd=script.parent, module=module)
    assert run.returncode == 1
    assert errors(run) == ["rank 2 alone:"]
    assert tracebacks(run) == 1
    assert "ValueError: only here" in run.stderr


@serial
@pytest.mark.slow
def test_a_defect_of_all_ranks_is_shown_once(script: Path) -> None:
    run = mpirun(2, script, "defect", cwd=script.parent)
    assert run.returncode == 1
    assert tracebacks(run) == 1
    assert "IndexError" in run.stderr
    assert errors(run) == []


@serial
@pytest.mark.slow
def test_ranks_that_are_interrupted_end_with_status_130(script: Path) -> None:
    run = mpirun(2, script, "interrupt", cwd=script.parent)
    assert run.returncode == 130
    assert tracebacks(run) == 0
    assert errors(run) == []


@serial
@pytest.mark.slow
def test_ctrl_c_ends_a_script_without_a_traceback(script: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(script), "sleep", "300"],
        cwd=script.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "interrupted\n"


@serial
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_four_ranks_agree_with_one_two_and_three() -> None:
    """Every kind of problem on 1, 2, 3 and 4 ranks: the same losses and gradients."""
    chosen = ("-q", "--color=no", "-k", "number_of_ranks", "tests/test_models_cases.py")
    run = mpirun(4, "-m", "pytest", *chosen, cwd=ROOT, timeout=1400)
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout
    assert int(passed[1]) >= 10
    assert "skipped" not in run.stdout


@serial
def test_an_output_that_was_closed_ends_a_script_quietly(tmp_path: Path) -> None:
    """`| head`: not PETSc's report of a crash."""
    script = tmp_path / "script.py"
    script.write_text("import hyco_fem as hf\nhf.run_script(lambda: [print(k) for k in range(200_000)])\n")
    command = f"{sys.executable} {script} | head -1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stdout, run.stderr) == (141, "0\n", "")


def test_another_broken_pipe_is_an_error_like_others(comm: MPI.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    status, told = ends(main, capsys)
    assert status == 1
    assert told == ("error: [Errno 32] Broken pipe\n" if comm.rank == 0 else "")


@pytest.mark.slow
@pytest.mark.serial
def test_a_study_goes_on_after_an_error_of_all_ranks_and_not_after_that_of_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from mpi4py import MPI\n"
        "from hyco_fem.script import Everyone\n"
        "comm = MPI.COMM_WORLD\n"
        "everyone = Everyone(comm)\n"
        "for failing in (range(comm.size), [1]):\n"
        "    try:\n"
        "        if comm.rank in failing:\n"
        "            raise MemoryError('too large')\n"
        "        comm.Barrier()  # where the others wait for one that does not come\n"
        "    except MemoryError as error:\n"
        "        everyone.has(error)\n"
        "        print('goes on', flush=True)\n"
    )
    run = mpirun(2, script, cwd=tmp_path, timeout=100.0)
    assert run.returncode != 0
    assert run.stdout.count("goes on") == 2
    assert "rank 1 alone:" in run.stderr
    assert "MemoryError: too large" in run.stderr
