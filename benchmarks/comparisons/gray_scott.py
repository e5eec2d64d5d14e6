"""HYCO's fourth published case (demos/gray_scott.py has the equations): two diffusivities from 5000 random (x, t).

As published: periodic 100 × 100, T = 2000, the sharp disc, 51 frames, D_u = 0.20 and D_v = 0.08 from 0.10 and 0.05, and
a solver that learns from the network alone (a₁ = 0).  Frame 0 is known, and left out.  There is no noise.

The measurements come from a cosine-spectral solution on 256² of a quarter of the square, by a fourth-order exponential
integrator with steps of 0.25; it is computed once, in some minutes, and kept in out/gray_scott_reference/.  The
inversion uses P2 on an eighth of the square, 64 cells a side, and BDF3 with graded steps up to 1.

Each seed draws places, times and a network.  Fields are compared at 10,000 other (x, t).
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem
from scipy.fft import dctn, idctn
from scipy.sparse.linalg import spsolve

import hyco_fem as hf
from comparisons.common import relative, solves

sys.path.insert(0, str(Path(__file__).parents[2] / "demos"))
import gray_scott as demo

END, FRAME = 2000.0, 40.0
FEED, REMOVAL = 0.018, 0.051
MODES, STEP = 256, 0.25
SENSORS, GHOSTS, ROUNDS = 5000, 20000, 4
CELLS = 64
HORIZON = 200.0
KEPT = Path("out/gray_scott_reference")


# -- the reference -------------------------------------------------------------------------------------------------


def disc_means(n: int, fine: int = 16) -> np.ndarray:
    """Means over n × n cells of the quarter of what is 1 in the disc: exact along y, a midpoint rule along x."""
    x = (np.arange(n * fine) + 0.5) * demo.HALF / (n * fine)
    height = np.sqrt(np.maximum(demo.RADIUS**2 - x**2, 0.0)) * n / demo.HALF
    filled = np.clip(height[:, None] - np.arange(n), 0.0, 1.0)
    return filled.reshape(n, fine, n).mean(axis=1)


def exponentials(rate: np.ndarray, dt: float) -> tuple[np.ndarray, ...]:
    """Coefficients of ETDRK4, by contour integrals (Kassam, Trefethen, SIAM J. Sci. Comput. 26, 2005)."""
    circle = np.exp(1j * np.pi * (np.arange(1, 33) - 0.5) / 32)
    half, f1, f2, f3 = (np.zeros_like(rate) for _ in range(4))
    for z in circle:
        L = rate * dt + z
        e = np.exp(L)
        half += ((np.exp(L / 2) - 1.0) / L).real
        f1 += ((-4.0 - L + e * (4.0 - 3.0 * L + L**2)) / L**3).real
        f2 += ((2.0 + L + e * (L - 2.0)) / L**3).real
        f3 += ((-4.0 - 3.0 * L - L**2 + e * (4.0 - L)) / L**3).real
    scale = dt / len(circle)
    return np.exp(rate * dt), np.exp(rate * dt / 2), scale * half, scale * f1, scale * f2, scale * f3


def spectral(n: int, dt: float, end: float) -> np.ndarray:
    """Cosine coefficients of (u, v) at the frames, (frames, 2, n, n)."""
    k = (np.pi * np.arange(n) / demo.HALF) ** 2
    waves = k[:, None] + k[None, :]
    rates = [-demo.TRUE[0] * waves - FEED, -demo.TRUE[1] * waves - FEED - REMOVAL]
    E, E2, Q, f1, f2, f3 = (np.stack(parts) for parts in zip(*[exponentials(r, dt) for r in rates], strict=True))

    def reaction(c: np.ndarray) -> np.ndarray:
        u, v = (idctn(part, norm="ortho") for part in c)
        eaten = dctn(u * v * v, norm="ortho")
        fed = -eaten
        fed[0, 0] += FEED * n
        return np.stack([fed, eaten])

    disc = disc_means(n)
    c = np.stack([dctn(1.0 - 0.5 * disc, norm="ortho"), dctn(0.5 * disc, norm="ortho")])
    found = [c]
    each = round(FRAME / dt)
    for step in range(1, round(end / dt) + 1):
        at_c = reaction(c)
        a = E2 * c + Q * at_c
        at_a = reaction(a)
        at_b = reaction(E2 * c + Q * at_a)
        at_d = reaction(E2 * a + Q * (2.0 * at_b - at_c))
        c = E * c + f1 * at_c + 2.0 * f2 * (at_a + at_b) + f3 * at_d
        if step % each == 0:
            found.append(c)
    return np.array(found)


def evaluate(c: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(u, v) of coefficients (2, n, n) at places of the quarter, (m, 2)."""
    n = c.shape[-1]
    size = np.sqrt(np.where(np.arange(n) == 0, 1.0, 2.0) / n)
    X, Y = (np.cos(np.outer(x[:, i], np.pi * np.arange(n) / demo.HALF)) * size for i in (0, 1))
    return np.stack([np.einsum("mi,mi->m", X @ part, Y) for part in c], axis=1)


@functools.cache
def reference() -> np.ndarray:
    """All 51 frames; from the disk, where they are there."""
    path = KEPT / f"reference_{MODES}_{STEP:g}.npy"
    if not path.exists():
        found = spectral(MODES, STEP, END)
        KEPT.mkdir(parents=True, exist_ok=True)
        mine = path.with_suffix(f".{os.getpid()}.npy")  # several ranks may compute it at once
        np.save(mine, found)
        mine.replace(path)
    return np.load(path, mmap_mode="r")


def samples(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random places (n, 2), folded, times of frames, and (u, v) there."""
    rng = np.random.default_rng(seed)
    x, k = demo.fold(rng.uniform(-demo.HALF, demo.HALF, (n, 2))), rng.integers(1, round(END / FRAME) + 1, n)
    y = np.empty((n, 2))
    for frame in np.unique(k):
        y[k == frame] = evaluate(np.asarray(reference()[frame]), x[k == frame])
    return x, FRAME * k, y


# -- the models ----------------------------------------------------------------------------------------------------


def sharp(domain: Any) -> fem.Function:
    """The disc, projected to the elements: what overlaps it in part must not lose it or gain it."""
    V = fem.functionspace(domain, ("Lagrange", 2, (2,)))
    w, z, x = ufl.TrialFunction(V), ufl.TestFunction(V), ufl.SpatialCoordinate(domain)
    disc = ufl.conditional(ufl.lt(ufl.dot(x, x), demo.RADIUS**2), 0.5, 0.0)
    load = ufl.inner(ufl.as_vector([1.0 - disc, disc]), z) * ufl.dx(metadata={"quadrature_degree": 20})
    found = fem.Function(V)
    mass = fem.assemble_matrix(fem.form(ufl.inner(w, z) * ufl.dx)).to_scipy().tocsc()
    found.x.array[:] = spsolve(mass, fem.assemble_vector(fem.form(load)).array)  # each seed has one rank
    return found


class Setting:
    """A seed: data, network, and the model over both horizons, with the same D."""

    def __init__(self, seed: int, comm: MPI.Comm) -> None:
        self.seed, self.comm = seed, comm
        self.modules = demo.diffusivities(*demo.GUESS)
        self.short, self.whole = (
            demo.reactor(comm, self.modules, end, cells=CELLS, start=sharp) for end in (HORIZON, END)
        )
        x, t, y = samples(seed, SENSORS)
        self.data = hf.Data(hf.SpaceTimePoints(self.whole.V.mesh, x, t), y)
        early = t <= HORIZON
        self.early = hf.Data(hf.SpaceTimePoints(self.short.V.mesh, x[early], t[early]), y[early])
        self.net = demo.network(END, 96, seed)

    def fit_network(self, steps: int = 4000, batch: int = 1500, rate: float = 3e-3) -> None:
        """To the data alone: Adam on random parts of them, its rate falling to zero."""
        x, y = self.data.points.x, self.data.values
        draw = torch.Generator().manual_seed(self.seed)
        adam = torch.optim.Adam(self.net.parameters(), rate, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,), generator=draw)
            adam.zero_grad()
            (self.net(x[rows]) - y[rows]).square().mean().backward()
            adam.step()
            falling.step()

    def found(self, physical: bool = True, net: bool = True) -> dict[str, float]:
        """Errors."""
        out: dict[str, float] = {}
        x, t, y = samples(10_000 + self.seed, 10_000)
        points = hf.SpaceTimePoints(self.whole.V.mesh, x, t)
        with torch.no_grad():
            if physical:
                for name, D, true in zip(("Du", "Dv"), demo.values(self.modules), demo.TRUE, strict=True):
                    out[name], out[f"{name}_signed"] = abs(D / true - 1.0), D / true - 1.0
                out["v_physical"] = relative(points.gather(self.whole(points))[:, 1] - y[:, 1], y[:, 1])
                out["solves"] = solves(self.short, self.whole)  # type: ignore[arg-type]
            if net:
                out["v_synthetic"] = relative(points.gather(self.net(points.x))[:, 1] - y[:, 1], y[:, 1])
        self.short.close()
        self.whole.close()
        return out


def started(seed: int, comm: MPI.Comm) -> Setting:
    """The network fitted to the data, and the solver's answer to it over the short horizon."""
    s = Setting(seed, comm)
    s.fit_network()
    demo.short_fit(s.short, s.net, FRAME, GHOSTS // 4)
    return s


def hyco(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """The game over the whole time, from there."""
    s = started(seed, comm)
    # 250 steps a round, and the rate falls from round to round.
    slower = lambda adam: torch.optim.lr_scheduler.ExponentialLR(adam, 0.5)  # noqa: E731
    answers = hf.Answers(hf.GaussNewton(steps=1), hf.AdamStep(1e-3, steps=250, schedule=slower))
    ghosts = demo.FrameGhosts(GHOSTS // 4, FRAME, seed)
    hf.Hyco(s.whole, s.net, s.data, ghosts, weights=hf.Weights(a1=0.0), answers=answers).run(ROUNDS)
    return s.found()


def apart(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """No interaction: the solver answers the network, which never hears of it."""
    s = started(seed, comm)
    demo.short_fit(s.whole, s.net, FRAME, GHOSTS, steps=3)
    return s.found()


def physics(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """The solver fitted to the data: what a₁ = 0 forbids."""
    s = Setting(seed, comm)
    hf.PhysicsOnly(s.short, s.early, hf.GaussNewton(steps=8, tolerance=1e-3)).run(1)
    hf.PhysicsOnly(s.whole, s.data, hf.GaussNewton(steps=3, tolerance=1e-3)).run(1)
    return s.found(net=False)


class GrayScott:
    """Methods, metrics and what is good."""

    methods: ClassVar[dict[str, Any]] = {
        "HYCO": hyco,
        "network, then physics": apart,
        "physics only": physics,
    }
    metrics: ClassVar[dict[str, str]] = {
        "Du": "relative error of D_u",
        "Dv": "relative error of D_v",
        "v_physical": "relative L² error of v, physical",
        "v_synthetic": "relative L² error of v, synthetic",
    }
    good_means = "D_u and D_v within 0.2 %."

    def good(self, row: dict[str, Any]) -> bool:
        """The aim."""
        return all((row.get(name) or 1.0) < 2e-3 for name in ("Du", "Dv"))
