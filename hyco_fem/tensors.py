"""The data of a tensor as a NumPy array, also inside the function transforms of `torch.func`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

_functorch = torch._C._functorch


def as_array(tensor: Tensor) -> np.ndarray:
    """The values of a tensor, contiguous, sharing memory where they can be shared.  Local.

    Inside `torch.func.jvp`, `vjp` and `grad` a tensor is a wrapper without storage, of which `numpy()` knows nothing;
    the value lies beneath.  A tensor of `torch.func.vmap` has one value for each sample and is refused.

    Raises:
        RuntimeError: the tensor is batched by vmap.
    """
    if not _functorch.is_functorch_wrapped_tensor(tensor):
        return np.ascontiguousarray(tensor.detach().numpy())
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            raise RuntimeError(
                "a PDE solve cannot be batched by torch.func.vmap; use PhysicalModel.solve_batch, or jacobian for "
                "derivatives by many parameters"
            )
        tensor = _functorch.get_unwrapped(tensor)
    # While a transform is active even numpy() and detach() act on wrappers.
    with temporarily_clear_interpreter_stack():
        return np.ascontiguousarray(tensor.detach().numpy())
