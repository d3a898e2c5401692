"""Find layers of a net by name: `features.3` as in `net.named_modules()`."""

from torch import nn

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d)


def leaves(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every module without children, in the order in which the net registers them."""
    return [(name, module) for name, module in net.named_modules() if not any(module.children())]


def layer_names(net: nn.Module) -> list[str]:
    """Names of every module of the net, containers too, but not the net itself."""
    return [name for name, _ in net.named_modules() if name]


def find_layer(net: nn.Module, name: str) -> nn.Module:
    """The module called `name`; ValueError with the names that exist when there is none."""
    modules: dict[str, nn.Module] = dict(net.named_modules())
    if not name or name not in modules:
        raise ValueError(f"No layer {name!r} in {type(net).__name__}; its layers: {', '.join(layer_names(net))}")
    return modules[name]


def last_convolution(net: nn.Module) -> str:
    """Name of the last convolution; ValueError when the net has none."""
    names = [name for name, module in leaves(net) if isinstance(module, nn.Conv2d)]
    if not names:
        raise ValueError(f"{type(net).__name__} has no convolution; its layers: {', '.join(layer_names(net))}")
    return names[-1]


def relu_after(net: nn.Module, convolution: str) -> str:
    """Name of the ReLU that follows a convolution, over a batch norm and an identity too; the convolution's own name if
    none does. In a residual block the ReLU after the sum is that of the last convolution: of the shortcut's, where it
    has one, while the other's maps are shown as they are."""
    following = leaves(net)
    start = [name for name, _ in following].index(convolution) + 1
    for name, module in following[start:]:
        if not isinstance(module, nn.BatchNorm2d | nn.Identity):
            return name if isinstance(module, nn.ReLU) else convolution
    return convolution
