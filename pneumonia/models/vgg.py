"""VGG16 (Simonyan and Zisserman, arXiv:1409.1556) under a dense head, with its weights' own preprocessing.

torchvision's weights come with a mean and a standard deviation; the network holds them as buffers, so that a checkpoint
carries its preprocessing and every caller passes plain [0, 1] images.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pneumonia.models.cnn import dense_head, keras_start

BLOCK_STARTS = (0, 5, 10, 17, 24)  # index in `features` of each block's first convolution
BLOCKS = len(BLOCK_STARTS)


class VGG(nn.Module):
    """image [N, 3, S, S] in [0, 1] -> logit [N].

    The frozen blocks stay in eval mode and, while training, run without autograd; in eval mode gradients with respect
    to the image still flow, as attributions need. ReLUs are not in-place.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, features: nn.Sequential, head: nn.Sequential, mean: Sequence[float], std: Sequence[float], image_size: int
    ) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.image_size = image_size
        self.frozen_layers = 0
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def train_blocks(self, blocks: int) -> None:
        """Let the last `blocks` of the 5 convolutional blocks learn, and freeze those before. Raises ValueError."""
        if not 0 <= blocks <= BLOCKS:
            raise ValueError(f"trainable_blocks={blocks}: expected a whole number from 0 to {BLOCKS}")
        self.frozen_layers = len(self.features) if blocks == 0 else BLOCK_STARTS[BLOCKS - blocks]
        for index, layer in enumerate(self.features):
            layer.requires_grad_(index >= self.frozen_layers)
        self.train(self.training)

    def train(self, mode: bool = True) -> "VGG":
        super().train(mode)
        self.features[: self.frozen_layers].eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            features = self.features[: self.frozen_layers]((image - self.mean) / self.std)
        return self.head(self.features[self.frozen_layers :](features)).squeeze(1)


def vgg16(weights: str | None, trainable_blocks: int, head: Sequence[int], dropout: float, image_size: int) -> VGG:
    """VGG16's convolutions under a dense head of the widths `head`, Glorot start; 224 px flatten to 25,088 features.

    `weights`: a member of torchvision's VGG16_Weights (downloaded once to torch's cache), a file with a state dict of
    torchvision's vgg16 (those that begin with features. are enough) or of this network, or None for torchvision's
    random start. A file and a random start use the mean and std of IMAGENET1K_V1. Raises ValueError for weights that
    can't be had or don't fit.
    """
    from torchvision.models import VGG16_Weights
    from torchvision.models import vgg16 as torchvision_vgg16

    if image_size < 32:
        raise ValueError(f"image_size={image_size} is too small for five pools; try data.image_size=224")
    members = VGG16_Weights.__members__
    preprocessing = members[weights if weights in members else "IMAGENET1K_V1"].transforms()
    features = torchvision_vgg16(weights=None).features
    for layer in features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    top = dense_head(512 * (image_size // 32) ** 2, head, dropout)
    top.apply(keras_start)
    net = VGG(features, top, preprocessing.mean, preprocessing.std, image_size)
    if weights is not None:
        load_weights(net, weights, named_weights(weights) if weights in members else file_weights(weights))
    net.train_blocks(trainable_blocks)
    return net


def named_weights(name: str) -> dict[str, Tensor]:
    """The state dict of torchvision's weights `name`, from torch's cache or the network."""
    from torchvision.models import VGG16_Weights

    try:
        return dict(VGG16_Weights[name].get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"weights={name} can't be downloaded ({error}). Bring the file and set "
            "model.weights=/path/to/state_dict.pth, or start at random with model.weights=null model.trainable_blocks=5"
        ) from error


def file_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a file saved by torch.save; nothing but tensors is unpickled. Raises ValueError."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"weights={path}: expected IMAGENET1K_V1, IMAGENET1K_FEATURES, null or the path of a state dict"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's, of a pickle that is none of its files
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on a file that is not its own
        raise ValueError(f"weights={path} is not a state dict that torch.load(weights_only=True) reads") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights={path} is not a state dict: expected names and tensors")
    return state


def load_weights(net: VGG, weights: str, state: dict[str, Tensor]) -> None:
    """Load a whole network's state dict, or the features of a torchvision VGG16 (its own classifier is left out)."""
    if "head.1.weight" not in state:
        state = {key: value for key, value in state.items() if key.startswith("features.")}
        state |= {key: value for key, value in net.state_dict().items() if not key.startswith("features.")}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"weights={weights} are of another architecture than VGG16 ({reason[:200]})") from error
