"""Files are whole or not there, all ranks hear of errors, and progress is shown to who can see it."""

from __future__ import annotations

import sys
from pathlib import Path

from mpi4py import MPI

import pytest
from folders import names, put

import hyco_fem as hf
from hyco_fem.files import replace_file


def test_a_file_is_replaced_whole_or_not_at_all(comm: MPI.Comm, folder: Path) -> None:
    own = folder / f"{comm.rank}"
    own.mkdir()
    path = own / "result.txt"
    replace_file(path, lambda p: p.write_text("first"))
    assert path.read_text() == "first"

    def fails(part: Path) -> None:
        assert part.suffix == ".txt", "writers choose the format by the ending"
        part.write_text("hal")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        replace_file(path, fails)
    assert path.read_text() == "first"
    replace_file(path, lambda p: p.write_text("second"))
    assert path.read_text() == "second"
    assert [p.name for p in own.iterdir()] == ["result.txt"]


def test_an_output_folder_is_made_or_refused_on_all_ranks(comm: MPI.Comm, folder: Path) -> None:
    made = hf.output_folder(folder / "a" / "b", comm)
    comm.Barrier()
    assert made.is_dir()
    assert hf.output_folder(str(made), comm) == made, "once more does no harm"
    assert names(comm, made) == []
    file = put(comm, folder / "file", "")
    for taken in (file, file / "below"):
        with pytest.raises(OSError, match=r"output folder '.*file.*' cannot be written \(.+\); choose another one"):
            hf.output_folder(taken, comm)


# -- progress --------------------------------------------------------------------------------------------------


def test_progress_in_a_log_is_a_line_now_and_then(comm: MPI.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    with hf.TextProgress(2, comm, "> ") as shown:
        for k in range(4):
            assert shown(hf.Record(k, misfit_physical=10.0**k, gradient_physical=0.25)) is None
    out = capsys.readouterr().out
    if comm.rank > 0:
        assert out == ""
        return
    first, second = out.splitlines()
    assert first.startswith("> round     0  L_phy 1.000e+00  |∇θ| 2.500e-01  ")
    assert second.startswith("> round     2  L_phy 1.000e+02  |∇θ| 2.500e-01  ")
    assert second.endswith(" s")
    assert "L_syn" not in out, "what is not a number is not shown"


def test_progress_on_a_terminal_is_a_bar_of_rank_zero(comm: MPI.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    with hf.BarProgress(3, comm, "fitting") as shown:
        for k in range(3):
            assert shown(hf.Record(k, misfit_synthetic=0.5, interaction=0.125 * k, gradient_synthetic=1.0)) is None
    out = capsys.readouterr().out
    if comm.rank > 0:
        assert out == ""
        return
    for part in ("fitting", "3/3", "L_syn 5.000e-01", "I 2.500e-01"):
        assert part in out
    assert "∇" not in out


def test_progress_is_a_bar_only_for_who_can_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    launchers = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_PROCID")
    for name in launchers:
        monkeypatch.delenv(name, raising=False)
    alone = MPI.COMM_SELF
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(hf.progress(10, alone), hf.BarProgress)
    for name in launchers:
        with monkeypatch.context() as context:
            context.setenv(name, "1")
            assert isinstance(hf.progress(10, alone), hf.TextProgress), f"under a launcher ({name})"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    shown = hf.progress(1200, alone, lines=6)
    assert isinstance(shown, hf.TextProgress)
    assert shown.every == 200
    assert hf.progress(3, alone).every == 1
