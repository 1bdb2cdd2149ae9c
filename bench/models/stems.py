"""Stems for small images."""

from __future__ import annotations

from torch import nn

from bench.errors import ConfigError


def small_stem(net: nn.Module, name: str) -> None:
    """The usual stem for 32x32 input: 3x3, stride 1, no pooling (He et al. 2016, Sec. 4.2), by family."""

    def conv(old: nn.Module, out: int) -> nn.Conv2d:
        first = next(m for m in old.modules() if isinstance(m, nn.Conv2d))
        return nn.Conv2d(first.in_channels, out, 3, stride=1, padding=1, bias=False)

    if hasattr(net, "conv1") and hasattr(net, "maxpool") and hasattr(net, "bn1"):  # residual networks
        net.conv1, net.maxpool = conv(net.conv1, net.bn1.num_features), nn.Identity()
    elif hasattr(net, "conv1") and hasattr(net, "maxpool1"):  # torchvision's GoogLeNet
        net.conv1.conv, net.maxpool1 = conv(net.conv1, net.conv1.bn.num_features), nn.Identity()
    elif isinstance(getattr(net, "features", None), nn.Module) and hasattr(net.features, "pool0"):  # DenseNet
        net.features.conv0 = conv(net.features.conv0, net.features.norm0.num_features)
        net.features.pool0 = nn.Identity()
    elif hasattr(net, "pre_logits") and hasattr(net, "features"):  # timm's VGG
        width = net.pre_logits.fc1.in_channels
        net.pre_logits, net.head.fc = nn.Identity(), nn.Linear(width, net.head.fc.out_features)
    elif hasattr(net, "avgpool") and hasattr(net, "features") and name.startswith("vgg"):  # torchvision's VGG
        last = [m for m in net.features if isinstance(m, nn.Conv2d)][-1]
        classes = net.classifier[-1].out_features
        net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(last.out_channels, classes)
    elif name == "alexnet":
        # 11x11 stride 4 becomes 3x3 stride 2. The last of three poolings, which would leave one pixel of 32x32, goes:
        # the maps are 16, 7 and 3 wide, so that all nine taps of the inner convolutions see pixels. The two hidden
        # layers stay but are a quarter as wide (at 4096 they would be 21 of 23 million weights).
        net.features[0] = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        net.features[12], net.avgpool = nn.Identity(), nn.AdaptiveAvgPool2d(2)
        for i, n in ((1, 1024), (4, 1024), (6, net.classifier[6].out_features)):
            net.classifier[i] = nn.Linear(1024, n)
        for layer in net.modules():  # torch's own start fades over eight layers without a norm: digits stay at 40%
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    elif (first := _striding(net)) is not None:  # MobileNet, EfficientNet, RegNet of either package
        first.stride = (1, 1)
    else:
        raise ConfigError(f"model.stem=small: {name} has no stem to exchange; use model.stem=imagenet")


def _striding(net: nn.Module) -> nn.Conv2d | None:
    """The convolution that a stem begins with, where it is the usual 3x3 of stride 2."""
    part = next((getattr(net, name) for name in ("conv_stem", "stem", "features") if hasattr(net, name)), None)
    first = next((m for m in part.modules() if isinstance(m, nn.Conv2d)), None) if part is not None else None
    return first if first is not None and first.kernel_size == (3, 3) and first.stride == (2, 2) else None
