"""Fields on a raster of pixels, and figures of matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
import torch
from cases import square
from dolfinx import fem, mesh
from folders import MESHES, names

import hyco_fem as hf


def test_a_raster_shows_the_field_at_the_centres_of_its_pixels(comm: MPI.Comm) -> None:
    domain = mesh.create_rectangle(comm, [[-1.0, 0.0], [3.0, 2.0]], [4, 3])
    raster = hf.Raster(domain, 20)
    assert raster.shape == (10, 20)
    assert raster.extent == (-1.0, 3.0, 0.0, 2.0)
    column, row = np.meshgrid(np.arange(20), np.arange(10))
    expected = (-1.0 + (column + 0.5) * 0.2) - 2.0 * (row + 0.5) * 0.2
    u = fem.Function(fem.functionspace(domain, ("Lagrange", 1)))
    u.interpolate(lambda x: x[0] - 2.0 * x[1])
    np.testing.assert_allclose(raster.image(u), expected, atol=1e-13)
    np.testing.assert_allclose(raster.image(lambda x: x[:, 0] - 2.0 * x[:, 1]), expected, atol=1e-13)
    net = hf.MLP(2, 1, width=3, depth=1)
    centres = torch.from_numpy(np.stack([-1.0 + (column + 0.5) * 0.2, (row + 0.5) * 0.2], axis=-1).reshape(-1, 2))
    np.testing.assert_allclose(raster.image(net).ravel(), net(centres).detach().numpy(), atol=1e-13)


def test_pixels_outside_the_mesh_are_empty(comm: MPI.Comm) -> None:
    plate = hf.read_mesh(MESHES / "plate_with_hole.geo", comm, mesh_size=0.2).mesh
    raster = hf.Raster(plate, 40)
    image = raster.image(lambda x: x[:, 0])
    column, row = np.meshgrid(np.arange(40), np.arange(20))
    distance = np.hypot((column + 0.5) * 0.05 - 0.7, (row + 0.5) * 0.05 - 0.5)
    assert np.isnan(image[distance < 0.19]).all()
    assert np.isfinite(image[distance > 0.2]).all()


def test_a_raster_takes_scalar_fields_on_meshes_of_the_plane(comm: MPI.Comm) -> None:
    domain = square(comm, 2)
    raster = hf.Raster(domain, 4)
    vector = fem.Function(fem.functionspace(domain, ("Lagrange", 1, (2,))))
    for field in (vector, hf.MLP(2, 2, width=3, depth=1)):
        with pytest.raises(ValueError, match=r"a picture shows a scalar field, not one with values of shape \(2,\)"):
            raster.image(field)
    with pytest.raises(ValueError, match="2D mesh, not a 3D one"):
        hf.Raster(mesh.create_unit_cube(comm, 1, 1, 1))

    def fails(x: torch.Tensor) -> torch.Tensor:
        if comm.rank == comm.size - 1:
            raise ValueError("not here")
        return x[:, 0]

    with pytest.raises(ValueError, match="not here"):
        raster.image(fails)


def test_a_figure_is_a_png_or_is_not_there(comm: MPI.Comm, folder: Path) -> None:
    path = folder / "picture.png"
    raster = hf.Raster(square(comm, 2), 4)
    image = raster.image(lambda x: x[:, 0] + 10.0 * x[:, 1])
    drawn: list[Any] = []

    def draw(figure: Any) -> None:
        ax = figure.add_subplot()
        hf.show(ax, raster, image, "κ", vmax=20.0)
        drawn.append(ax)

    hf.save_figure(comm, path, draw, size=(3.0, 2.0))
    comm.Barrier()
    assert len(drawn) == (1 if comm.rank == 0 else 0)
    if comm.rank == 0:
        from matplotlib.image import imread

        assert imread(path).shape == (260, 390, 4), "130 pixels an inch"
        shown = drawn[0].images[0]
        np.testing.assert_array_equal(shown.get_array(), image)
        assert tuple(shown.get_extent()) == (0.0, 1.0, 0.0, 1.0)
        assert (shown.origin, drawn[0].get_title()) == ("lower", "κ")
        assert shown.get_clim() == (image.min(), 20.0)
    before = path.read_bytes()

    def fails(figure: Any) -> None:
        raise ValueError("nothing to draw")

    with pytest.raises(ValueError, match="nothing to draw"):
        hf.save_figure(comm, path, fails, size=(3.0, 2.0))
    with pytest.raises(OSError, match=r"."):
        hf.save_figure(comm, folder / "none" / "picture.png", draw, size=(1.0, 1.0))
    assert path.read_bytes() == before
    assert names(comm, folder) == ["picture.png"]
