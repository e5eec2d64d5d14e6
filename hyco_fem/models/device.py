"""A synthetic model on another device: only coordinates and values at points cross.

The PDE stays with PETSc on the CPU.  What the game asks of a network is its values at points, (n, d) → (n,), so a
network on a GPU needs no more than those two small arrays sent there and back, and the gradient by the same road.
"""

from __future__ import annotations

from mpi4py import MPI

import torch
from torch import Tensor, nn

from hyco_fem.parallel import agreed, local_rank


class OnDevice(nn.Module):
    """network on a device, for callers on the CPU: coordinates go there, values come back in float64.

    The network itself is moved, parameters and buffers; they stay there, and so do gradients and the optimiser's
    state.  `.to` is differentiable, so autograd passes in both modes and to any order.

    Args:
        network: The network, with its `InputScaling`.  `HardBoundary` may be inside too; in float32 it belongs around
            this one, where boundary values are exact to sixteen digits and not to seven.
        device: "cuda", "cuda:1", "xpu", "mps", "cpu", or a torch.device.  Without a number, the ranks on a node take
            its devices in turn: local rank modulo their number.  Ranks may share one.
        dtype: torch.float64; or torch.float32, in which a network on a GPU can be many times faster.  Values are then
            float64 at the border only: φ, u_syn and its gradients have seven digits, and different numbers of ranks
            agree no better.
        comm: The ranks that build it together.

    Raises:
        ValueError: the device is not there, or cannot compute in this dtype; on all ranks.

    Construction is collective over comm; calls are local.
    """

    def __init__(
        self,
        network: nn.Module,
        device: str | torch.device,
        dtype: torch.dtype = torch.float64,
        *,
        comm: MPI.Comm = MPI.COMM_WORLD,
    ) -> None:
        super().__init__()
        turn = local_rank(comm)
        with agreed(comm):
            if dtype not in (torch.float64, torch.float32):
                raise ValueError(f"a network computes in torch.float64 or torch.float32, not in {dtype}")
            self.device = _device(device, turn)
            _check_usable(self.device, dtype)
            self.dtype = dtype
            self.network = network.to(self.device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(n, d), anywhere → what the network returns, where x is, in float64."""
        return self.network(x.to(self.device, self.dtype)).to(x.device, torch.float64)


def _device(device: str | torch.device, turn: int) -> torch.device:
    """The device with its number."""
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"{device!r} is no device of torch; there are {', '.join(_devices())}") from None
    count = _count(device.type)
    return torch.device(device.type, turn % count) if device.index is None and count else device


def _count(kind: str) -> int:
    """Devices of an accelerator on this node; 0 for the CPU, and where torch was built without it."""
    module = getattr(torch, kind, None)
    return int(module.device_count()) if kind in ("cuda", "xpu", "mps") and module is not None else 0


def _devices() -> list[str]:
    return ["cpu", *(f"{kind}:{i}" for kind in ("cuda", "xpu", "mps") for i in range(_count(kind)))]


def _check_usable(device: torch.device, dtype: torch.dtype) -> None:
    try:
        torch.zeros(1, dtype=dtype, device=device)
    # What torch raises depends on the device: AssertionError where it was built without CUDA, TypeError for float64 on
    # MPS, NotImplementedError without a backend.
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"torch cannot compute in {str(dtype).removeprefix('torch.')} on the device '{device}' "
            f"({str(error).splitlines()[0]}); there are {', '.join(_devices())}"
        ) from None
