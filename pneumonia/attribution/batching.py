"""How many images the device takes at once: chosen from its free memory, halved when that was too many."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from pneumonia.attribution.contract import AveragesViews, evaluating

CPU_BATCH = 8  # measured at 224 x 224: larger ones are slower on a core, for their outputs are new memory each time
SAFETY = 0.8  # share of the free memory to plan with: allocators lose some to fragments
WITH_GRADIENTS = 3  # outputs kept for backward, their gradients, and the work space of the convolutions

Result = TypeVar("Result")


def free_bytes(device: torch.device) -> int:
    """Bytes a CUDA device can still give: what the driver has free and what torch holds without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def output_bytes(net: nn.Module, image: Tensor) -> int:
    """Bytes of the outputs of all innermost modules for one image [1, 3, H, W], and of the image itself."""
    sizes = [image.nbytes]
    inner = [module for module in net.modules() if not any(module.children())]
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.nbytes)) for module in inner
    ]
    try:
        with evaluating(net), torch.no_grad():
            net(image)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes)


def batch_for(net: nn.Module, image: Tensor, at_most: int, *, gradients: bool) -> int:
    """Images like `image` [1, 3, H, W] to pass through `net` at once, between 1 and `at_most`.

    On CUDA one forward pass measures what an image takes; elsewhere CPU_BATCH is the bound. Of a net that averages
    views each view counts.
    """
    copies = net.copies if isinstance(net, AveragesViews) else 1
    if image.device.type != "cuda":
        return max(1, min(at_most, CPU_BATCH) // copies)
    needed = output_bytes(net, image) * (WITH_GRADIENTS if gradients else 1)
    return max(1, min(at_most // copies, int(SAFETY * free_bytes(image.device) / needed)))


def halved_until_it_fits(run: Callable[[int], Result], batch: int) -> Result:
    """`run(batch)`, again with half the batch each time the device is out of memory; MemoryError when 1 is too many."""
    while batch >= 1:
        try:
            return run(batch)
        except torch.OutOfMemoryError:
            batch //= 2
        if (
            torch.cuda.is_available()
        ):  # here, not in the handler: until it ends the error holds the tensors of the failed run
            torch.cuda.empty_cache()
    raise MemoryError(
        "Not even one image at a time fits into the memory of the device: free some, choose a smaller net or image, "
        "or run on the CPU"
    )


def predict(net: nn.Module, make: Callable[[int, int], Tensor], count: int, batch: int) -> Tensor:
    """Logits [count] of images that are made when their turn comes: `make(start, stop)` -> [stop - start, 3, H, W]."""

    def run(size: int) -> Tensor:
        starts = range(0, count, size)
        return torch.cat([net(make(start, min(start + size, count))) for start in starts])

    with evaluating(net), torch.inference_mode():
        return halved_until_it_fits(run, batch)
