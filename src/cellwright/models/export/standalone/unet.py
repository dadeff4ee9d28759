"""A U-Net of cellwright in PyTorch, without cellwright: images to maps; below it, maps to objects (`decode`).

The maps are in their own units: probabilities from 0 to 1, flows as they are, rays in pixels. In training mode, batch
norm learns as usual, so the network can be trained further.
"""

import torch
from torch import nn
from torch.nn import functional

RAY_UNIT_PX = 8.0


class ConvNorm(nn.Module):
    """A padded convolution and batch norm, or its bias."""

    def __init__(self, before, after, kernel, batch_norm):
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(after) if batch_norm else nn.Identity()

    def forward(self, x):
        """FloatTensor[B,before,H,W] -> FloatTensor[B,after,H,W]."""
        return self.norm(self.conv(x))


class Block(nn.Module):
    """Two 3x3 convolutions; with ``residual`` the input is added to their output."""

    def __init__(self, before, after, residual, batch_norm):
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(before, after, 3, batch_norm), ConvNorm(after, after, 3, batch_norm)
        self.shortcut = None
        if residual:
            self.shortcut = nn.Identity() if before == after else ConvNorm(before, after, 1, batch_norm)

    def forward(self, x):
        """FloatTensor[B,before,H,W] -> FloatTensor[B,after,H,W]."""
        hidden = self.conv2(functional.relu(self.conv1(x)))
        return functional.relu(hidden if self.shortcut is None else hidden + self.shortcut(x))


class UNet(nn.Module):
    """Predicts maps of the size of the image; H and W must be multiples of ``2 ** depth``.

    channels: names of the maps. n_classes: maps after these that are probabilities of classes, 0 for none. nested: a
    U-Net++ (Zhou et al. 2018) instead of a U-Net (Ronneberger et al. 2015).
    """

    def __init__(self, in_channels, channels, n_classes, width, depth, residual, batch_norm, nested):
        super().__init__()
        self.depth, self.nested, self.n_classes = depth, nested, n_classes
        self.kinds = ["ray" if c.startswith("ray_") else "flow" if c.startswith("flow_") else "" for c in channels]
        options = residual, batch_norm
        widths = [width * 2**level for level in range(depth + 1)]
        pairs = zip([in_channels, *widths], widths, strict=False)
        self.encoder = nn.ModuleList(Block(before, after, *options) for before, after in pairs)
        nodes = [(level, column) for level in range(depth) for column in range(1, depth - level + 1)]
        if nested:
            up = {f"{i}_{j}": nn.ConvTranspose2d(2 * widths[i], widths[i], 2, 2) for i, j in nodes}
            blocks = {f"{i}_{j}": Block((j + 1) * widths[i], widths[i], *options) for i, j in nodes}
            self.decoder = nn.ModuleDict({"upsample": nn.ModuleDict(up), "blocks": nn.ModuleDict(blocks)})
        else:
            finer = widths[-2::-1]
            self.upsample = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in finer)
            self.decoder = nn.ModuleList(Block(2 * c, c, *options) for c in finer)
        self.maps = nn.Conv2d(width, len(channels) + n_classes, 1)

    def forward(self, images):
        """FloatTensor[B,in_channels,H,W] -> FloatTensor[B,channels + n_classes,H,W]."""
        skips = [self.encoder[0](images)]
        for block in self.encoder[1:]:
            skips.append(block(functional.max_pool2d(skips[-1], 2)))
        if self.nested:
            rows = [[x] for x in skips]
            for column in range(1, self.depth + 1):
                for level in range(self.depth - column + 1):
                    name, coarser = f"{level}_{column}", rows[level + 1][column - 1]
                    finer = self.decoder["upsample"][name](coarser)
                    rows[level].append(self.decoder["blocks"][name](torch.cat([*rows[level], finer], dim=1)))
            return self.activated(self.maps(rows[0][-1]))
        x = skips.pop()
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            x = block(torch.cat([skips.pop(), upsample(x)], dim=1))
        return self.activated(self.maps(x))

    def activated(self, logits):
        """The maps in their units."""
        use = {"flow": lambda x: x, "ray": lambda x: RAY_UNIT_PX * x, "": torch.sigmoid}
        maps = [use[kind](logits[:, k : k + 1]) for k, kind in enumerate(self.kinds)]
        if self.n_classes:
            maps.append(logits[:, len(self.kinds) :].softmax(dim=1))
        return torch.cat(maps, dim=1)
