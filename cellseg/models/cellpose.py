"""The network of Cellpose 2 and 3, so that its published and fine-tuned weights can be a teacher here.

A residual U-Net of pre-activated convolutions whose ascending half is steered by a *style*: the average of the coarsest
features over the image, brought to unit norm (Stringer, Wang, Michaelos, Pachitariu, Nature Methods 2021, doi
10.1038/s41592-020-01018-x, Methods; checked against ``cellpose/resnet_torch.py``, class ``CPnet``, of cellpose 3.1).
Its files are read and written by :mod:`cellseg.models.cellpose_files`.

What differs around the network: a colour image becomes grey after its channels were normalised (there before), values
are clipped to [-1, 2] first (there not), images are shrunk by averaging areas, and ``predict`` cuts tiles of 512 pixels
where Cellpose cuts 224, each with a style of its own. Where a style would be 0/0 it is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from cellseg.config import ModelConfig
from cellseg.models.network import Network

_CONVOLUTIONS = 4
"""3×3 convolutions a level, on the way down and on the way up."""
_MULTIPLE, _BORDER = 16, 8
"""Cellpose pads an image to multiples of 16 pixels, and by 8 more on every side (``transforms.get_pad_yx``)."""


class NormConv(nn.Module):
    """Batch norm, an activation, then a convolution that keeps the size."""

    def __init__(self, n_in: int, n_out: int, size: int = 3, *, activate: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n_in, eps=1e-5, momentum=0.05)
        self.conv = nn.Conv2d(n_in, n_out, size, padding=size // 2)
        self.activate = activate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features ``(B, n_in, H, W)`` to ``(B, n_out, H, W)``."""
        x = self.norm(x)
        out: torch.Tensor = self.conv(functional.relu(x) if self.activate else x)
        return out


class StyledConv(NormConv):
    """The same with a projection of the style added to every pixel first."""

    def __init__(self, n_in: int, n_out: int, n_style: int) -> None:
        super().__init__(n_in, n_out)
        self.style = nn.Linear(n_style, n_in)

    def forward(self, x: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
        """Map features ``(B, n_in, H, W)`` and a style ``(B, n_style)`` to ``(B, n_out, H, W)``."""
        assert style is not None
        return super().forward(x + self.style(style)[:, :, None, None])


class Down(nn.Module):
    """Two residual units of two convolutions; the first unit's shortcut changes the number of channels."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(NormConv(n_in if t == 0 else n_out, n_out) for t in range(_CONVOLUTIONS))
        self.shortcut = NormConv(n_in, n_out, 1, activate=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features ``(B, n_in, H, W)`` to ``(B, n_out, H, W)``."""
        x = self.shortcut(x) + self.convs[1](self.convs[0](x))
        out: torch.Tensor = x + self.convs[3](self.convs[2](x))
        return out


class Up(nn.Module):
    """Two residual units; the skipped features are added after the first convolution, the style before all others."""

    def __init__(self, n_in: int, n_out: int, n_style: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            NormConv(n_in, n_out) if t == 0 else StyledConv(n_out, n_out, n_style) for t in range(_CONVOLUTIONS)
        )
        self.shortcut = NormConv(n_in, n_out, 1, activate=False)

    def forward(self, x: torch.Tensor, skip: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Map features ``(B, n_in, H, W)`` and skipped ones ``(B, n_out, H, W)`` to ``(B, n_out, H, W)``."""
        x = self.shortcut(x) + self.convs[1](self.convs[0](x) + skip, style)
        out: torch.Tensor = x + self.convs[3](self.convs[2](x, style), style)
        return out


class CellposeNet(Network):
    """The network of Cellpose 2 and 3, with maps in the order of our ``flow``: foreground logit, 5 · dy, 5 · dx.

    Cellpose's own order is dy, dx, foreground; scale and direction (toward the centre) are the same. In eval mode
    images get Cellpose's border of zeros, so that maps equal its own; in training, as there, only what is wanting
    to a multiple of 16.

    Parameters
    ----------
    n_maps : int
        Number of output maps, 3.
    config : ModelConfig
        ``widths`` of the levels; ``channels``, what of the three input channels is seen; ``reference_diameter``.

    Attributes
    ----------
    diam_mean, diam_labels : Tensor (1,)
        Cellpose's notes in the file: the diameter in pixels that images are scaled to, our ``reference_diameter``,
        and the mean one of the training images, which Cellpose assumes where the user gives none.
    """

    diam_mean: torch.Tensor
    diam_labels: torch.Tensor

    def __init__(self, n_maps: int, config: ModelConfig) -> None:
        assert config.widths is not None and config.channels is not None
        widths = config.widths
        super().__init__(multiple=max(_MULTIPLE, 2 ** (len(widths) - 1)))
        self.channels = config.channels
        self.register_buffer("diam_mean", torch.tensor([config.reference_diameter]))
        self.register_buffer("diam_labels", torch.tensor([config.reference_diameter]))
        self.down = nn.ModuleList(Down(shallow, deep) for shallow, deep in pairwise((2, *widths)))
        self.up = nn.ModuleList(
            Up(deep, shallow, widths[-1]) for shallow, deep in pairwise((*widths, widths[-1]))
        )  # finest first, as on the way down
        self.head = NormConv(widths[0], n_maps, 1)

    def encoder(self) -> Iterable[nn.Module]:
        """Yield the descending levels."""
        return self.down

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, 3, H, W)`` of any size to raw maps ``(B, 3, H, W)``."""
        height, width = images.shape[-2:]
        border = 0 if self.training else _BORDER
        top, below = self._margins(height, border)
        left, right = self._margins(width, border)
        maps = self.full_maps(functional.pad(images, (left, right, top, below)))
        return maps[..., top : top + height, left : left + width]

    def _margins(self, side: int, border: int) -> tuple[int, int]:
        wanting = -side % self.multiple
        return border + wanting // 2, border + wanting - wanting // 2

    def full_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Map images ``(B, 3, H, W)``, sides multiples of ``multiple``, to raw maps ``(B, 3, H, W)``."""
        x = self._two_channels(images)
        skips: list[torch.Tensor] = []
        for down in self.down:
            x = down(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        style = functional.normalize(x.float().mean(dim=(2, 3)), dim=1)
        for level in range(len(self.up) - 1, -1, -1):
            x = self.up[level](x, skips[level], style)
            if level > 0:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
        return torch.roll(self.head(x), 1, dims=1)

    def _two_channels(self, images: torch.Tensor) -> torch.Tensor:
        """Pick cells and nuclei ``(B, 2, H, W)``; absent nuclei are zero."""
        cells, nuclei = self.channels
        first = images[:, cells - 1 : cells] if cells else images.mean(dim=1, keepdim=True)
        second = images[:, nuclei - 1 : nuclei] if nuclei else torch.zeros_like(first)
        return torch.cat((first, second), dim=1)
