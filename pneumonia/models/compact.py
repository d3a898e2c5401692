"""A small residual network for grey films that is strong from a random start: 0.9 M parameters at its usual widths.

Input     the three equal channels become one.
Stem      one 3x3 convolution of stride 2: opacities are larger than the pixels it drops.
Widths    few channels where the side is large, so that no stage costs much more than another.
Stages    basic residual blocks (He et al. 2016, arXiv:1512.03385) with batch normalisation; the shortcut of a block
          that halves the side is an average pool and a 1x1 convolution, so no pixel is skipped (ResNet-D, He et al.
          2019, arXiv:1812.01187); the last normalisation of each block starts at 0, so that each block starts as
          identity (Goyal et al. 2017, arXiv:1706.02677).
Head      global average pool and one dense layer (Lin et al. 2014, arXiv:1312.4400): nothing ties it to a place of the
          film or to its size; 193 weights; the dense layers of the other nets here have 13 to 382 million at 224 px.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from pneumonia.models.cnn import ConvNet, are_counts


class Block(nn.Module):
    """features [N, C, S, S] -> [N, width, S / stride, S / stride], odd sides rounded up."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(channels, width, stride)
        self.relu2 = nn.ReLU()
        nn.init.zeros_(self.norm2.weight)

    def forward(self, features: Tensor) -> Tensor:
        change = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(features)))))
        return self.relu2(change + self.shortcut(features))


def shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """Identity where a block keeps the shape, else a pool (when the side halves) and a 1x1 convolution."""
    if channels == width and stride == 1:
        return nn.Identity()
    pool = [nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)] if stride > 1 else []
    return nn.Sequential(*pool, nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))


class Compact(ConvNet):
    """image [N, 3, S, S] in [0, 1], three equal channels -> logit [N]."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.mean(1, keepdim=True))


def compact(stem: int, widths: Sequence[int], blocks: Sequence[int], dropout: float, image_size: int) -> Compact:
    """Build a network: a stem of `stem` channels, then one stage for each of `widths` with as many blocks as `blocks`
    says; each stage but the first halves the side. Raises ValueError."""
    if len(widths) != len(blocks) or not widths:
        raise ValueError(
            f"widths={list(widths)} and blocks={list(blocks)}: expected one number of blocks for each width"
        )
    if not are_counts((stem, *widths, *blocks)):
        raise ValueError(f"stem={stem}, widths={list(widths)}, blocks={list(blocks)}: expected whole numbers from 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: expected a share of units in [0, 1)")
    if image_size < 2 ** len(widths):
        raise ValueError(f"image_size={image_size} is too small for {len(widths)} stages; try data.image_size=112")
    layers: list[nn.Module] = [nn.Conv2d(1, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
    channels = stem
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for block in range(count):
            layers.append(Block(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = width
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] + ([nn.Dropout(dropout)] if dropout else [])
    net = Compact(nn.Sequential(*layers), nn.Sequential(*pooled, nn.Linear(channels, 1)), image_size)
    net.apply(kaiming_start)
    return net


def kaiming_start(module: nn.Module) -> None:
    """Kernels as He et al. 2015 (arXiv:1502.01852) draw them for ReLU; the output layer small, so that training starts
    from a probability of one half."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
