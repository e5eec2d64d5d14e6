"""HYCO's fourth published case (demos/gray_scott.py has the equations): two diffusivities from 5000 random (x, t).

As published: periodic 100 × 100, T = 2000, the sharp disc, 51 frames, D_u = 0.20 and D_v = 0.08 from 0.10 and 0.05, and
a solver that learns from the network alone (a₁ = 0).  Frame 0 is known, and left out.  There is no noise.

The measurements come from a cosine-spectral solution on 256² of a quarter of the square, by a fourth-order exponential
integrator with steps of 0.125; it is computed once, in some minutes, and kept in out/gray_scott_reference/.  The
inversion uses P3 on an eighth of the square, 48 cells a side, and BDF3 with graded steps up to 1.

The late pattern magnifies what is wrong early some hundred times, so the solver is believed less in late frames.  What
it gets wrong in a frame, e, is estimated by how far it is from itself on 32 cells at the same D; what the network gets
wrong, s, in each fifth of the time, by a tenth of the measurements that it has not seen.  Ghost points have weights
1 / (s² + e²); where the solver is fitted to the data, they count by 1 / e².

Each seed draws places, times and a network.  Fields are compared at 10,000 other (x, t).
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mpi4py import MPI

import numpy as np
import torch
import ufl
from dolfinx import fem
from scipy.fft import dctn, idctn
from scipy.sparse.linalg import spsolve
from scipy.special import j1

import hyco_fem as hf
from comparisons.common import relative, solves

sys.path.insert(0, str(Path(__file__).parents[2] / "demos"))
import gray_scott as demo

END, FRAME = 2000.0, 40.0
FEED, REMOVAL = 0.018, 0.051
MODES, STEP = 256, 0.125
SENSORS, GHOSTS, ROUNDS = 5000, 20000, 4
DEGREE, CELLS, FEWER = 3, 48, 32
RIM, SPANS = 0.15, 5
HORIZON = 200.0
KEPT = Path("out/gray_scott_reference")


# -- the reference -------------------------------------------------------------------------------------------------


def disc(n: int) -> np.ndarray:
    """Cosine coefficients, (n, n), of what is 1 in the disc: exact, by J₁."""
    k = np.pi * np.arange(n) / demo.HALF
    z = demo.RADIUS * np.hypot(k[:, None], k)
    z[0, 0] = 1.0
    integral = 0.5 * np.pi * demo.RADIUS**2 * j1(z) / z  # over a quarter, of the disc times both cosines
    integral[0, 0] = 0.25 * np.pi * demo.RADIUS**2
    return (n / demo.HALF) ** 2 * integral * np.outer(size_of(n), size_of(n))


def size_of(n: int) -> np.ndarray:
    """Of the cosines, (n,), as the orthonormal transform has them."""
    return np.sqrt(np.where(np.arange(n) == 0, 1.0, 2.0) / n)


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

    v = 0.5 * disc(n)
    u = -v
    u[0, 0] += n
    c = np.stack([u, v])
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
    X, Y = (np.cos(np.outer(x[:, i], np.pi * np.arange(n) / demo.HALF)) * size_of(n) for i in (0, 1))
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


def sharp(domain: Any, degree: int = DEGREE) -> fem.Function:
    """The disc, projected to the elements: what overlaps it in part must not lose it or gain it.

    Its rim is a cubic over a width that hardly shows, and that a quadrature rule can see.
    """
    V = fem.functionspace(domain, ("Lagrange", degree, (2,)))
    w, z, x = ufl.TrialFunction(V), ufl.TestFunction(V), ufl.SpatialCoordinate(domain)
    inside = (demo.RADIUS - ufl.sqrt(ufl.dot(x, x) + 1e-12)) / RIM + 0.5
    inside = ufl.min_value(ufl.max_value(inside, 0.0), 1.0)
    disc = 0.5 * inside**2 * (3.0 - 2.0 * inside)
    load = ufl.inner(ufl.as_vector([1.0 - disc, disc]), z) * ufl.dx(metadata={"quadrature_degree": 120})
    found = fem.Function(V)
    mass = fem.assemble_matrix(fem.form(ufl.inner(w, z) * ufl.dx)).to_scipy().tocsc()
    found.x.array[:] = spsolve(mass, fem.assemble_vector(fem.form(load)).array)  # each seed has one rank
    return found


def frame_of(t: Any) -> np.ndarray:
    """Rows of the frames of times; that of t = FRAME is 0."""
    return np.rint(np.asarray(t) / FRAME).astype(int) - 1


@dataclass(frozen=True, eq=False)
class Trusted:
    """Ghost points with the weights of their frames."""

    ghosts: Any
    weight: np.ndarray

    def on(self, where: hf.SpaceTime) -> Trusted:
        """For a model in time."""
        return Trusted(self.ghosts.on(where), self.weight)

    def draw(self, round: int = 0) -> hf.SpaceTimePoints:
        """Those of a round.  Collective."""
        points = self.ghosts.draw(round)
        points.weights = points.weights * torch.from_numpy(self.weight[frame_of(points.t)])
        return points


class Setting:
    """A seed: data, network, and the model over both horizons and on fewer cells, with the same D."""

    def __init__(self, seed: int, comm: MPI.Comm) -> None:
        self.seed, self.comm = seed, comm
        self.modules = demo.diffusivities(*demo.GUESS)
        self.short, self.whole, self.coarse = (
            demo.reactor(comm, self.modules, end, cells=cells, degree=DEGREE, start=sharp)
            for end, cells in ((HORIZON, CELLS), (END, CELLS), (END, FEWER))
        )
        x, t, y = samples(seed, SENSORS)
        self.data = hf.Data(hf.SpaceTimePoints(self.whole.V.mesh, x, t), y)
        early = t <= HORIZON
        self.early = hf.Data(hf.SpaceTimePoints(self.short.V.mesh, x[early], t[early]), y[early])
        self.net = demo.network(END, 96, seed)

    def fit_network(self, steps: int = 4000, batch: int = 1500, rate: float = 3e-3) -> np.ndarray:
        """To nine tenths of the data alone: Adam on random parts of them, its rate falling to zero.

        Returns mean squares of what it gets wrong in the others, by frame: the same within each fifth of the time.
        """
        x, y = self.data.points.x, self.data.values
        seen = len(x) - len(x) // 10
        draw = torch.Generator().manual_seed(self.seed)
        adam = torch.optim.Adam(self.net.parameters(), rate, fused=True)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            rows = torch.randint(seen, (batch,), generator=draw)
            adam.zero_grad()
            (self.net(x[rows]) - y[rows]).square().mean().backward()
            adam.step()
            falling.step()
        with torch.no_grad():
            square = (self.net(x[seen:]) - y[seen:]).square().mean(1).numpy()
        frames = round(END / FRAME)
        span = np.arange(frames) * SPANS // frames
        of = span[frame_of(x[seen:, 2])]
        return np.array([square[of == k].mean() for k in range(SPANS)])[span]

    def frame_errors(self) -> np.ndarray:
        """Of the solver at this D, by frame: root mean squares of what fewer cells change."""
        frames = round(END / FRAME)
        rng = np.random.default_rng(self.seed)
        x = demo.fold(rng.uniform(-demo.HALF, demo.HALF, (400 * frames, 2)))
        t = FRAME * np.repeat(np.arange(1, frames + 1), 400)
        found = []
        for model in (self.whole, self.coarse):
            points = hf.SpaceTimePoints(model.V.mesh, x, t)
            with torch.no_grad():
                found.append(points.gather(model(points)))
        return np.sqrt(((found[0] - found[1]) ** 2).reshape(frames, -1).mean(axis=1))

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
                out["solves"] = solves(self.short, self.whole, self.coarse)  # type: ignore[arg-type]
            if net:
                out["v_synthetic"] = relative(points.gather(self.net(points.x))[:, 1] - y[:, 1], y[:, 1])
        for model in (self.short, self.whole, self.coarse):
            model.close()
        return out


def started(seed: int, comm: MPI.Comm) -> tuple[Setting, np.ndarray]:
    """The network fitted to the data, the solver's answer to it over the short horizon, and s² + e² by frame."""
    s = Setting(seed, comm)
    unseen = s.fit_network()
    demo.short_fit(s.short, s.net, FRAME, GHOSTS // 4)
    return s, unseen + s.frame_errors() ** 2


def hyco(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """The game over the whole time, from there."""
    s, variance = started(seed, comm)
    # 250 steps a round, and the rate falls from round to round.
    slower = lambda adam: torch.optim.lr_scheduler.ExponentialLR(adam, 0.5)  # noqa: E731
    answers = hf.Answers(hf.GaussNewton(steps=1), hf.AdamStep(1e-3, steps=250, schedule=slower))
    ghosts = Trusted(demo.FrameGhosts(GHOSTS // 4, FRAME, seed), 1.0 / variance / np.mean(1.0 / variance))
    hf.Hyco(s.whole, s.net, s.data, ghosts, weights=hf.Weights(a1=0.0), answers=answers).run(ROUNDS)
    return s.found()


def apart(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """No interaction: the solver answers the network, which never hears of it."""
    s, variance = started(seed, comm)
    ghosts = demo.FrameGhosts(GHOSTS, FRAME, seed=99).on(s.whole.domain).draw()
    with torch.no_grad():
        seen = hf.Data(ghosts, ghosts.gather(s.net(ghosts.x)), np.sqrt(variance[frame_of(ghosts.gather(ghosts.t))]))
    hf.PhysicsOnly(s.whole, seen, hf.GaussNewton(steps=3, tolerance=1e-3)).run(1)
    return s.found()


def physics(seed: int, comm: MPI.Comm) -> dict[str, float]:
    """The solver fitted to the data: what a₁ = 0 forbids."""
    s = Setting(seed, comm)
    hf.PhysicsOnly(s.short, s.early, hf.GaussNewton(steps=8, tolerance=1e-3)).run(1)
    x, t, y = samples(seed, SENSORS)
    data = hf.Data(hf.SpaceTimePoints(s.whole.V.mesh, x, t), y, s.frame_errors()[frame_of(t)])
    hf.PhysicsOnly(s.whole, data, hf.GaussNewton(steps=3, tolerance=1e-3)).run(1)
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
