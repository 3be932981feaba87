"""Cuts Moondream's crops into patches, and puts what the tower saw in overlapping crops together again."""

from __future__ import annotations

import torch
from torch import Tensor


def cut_patches(crops: Tensor, patch: int) -> Tensor:
    """(B, 3, S, S) to (B, P, 3 * patch * patch): patches by row, the pixels of each by channel, then by row."""
    cut = torch.unflatten(torch.unflatten(crops, 3, (-1, patch)), 2, (-1, patch))  # (B, 3, grid, patch, grid, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def stitch(crops: Tensor, tiling: tuple[int, int], margin: int) -> Tensor:
    """(rows * columns, grid, grid, D) overlapping crops to (H, W, D).

    Along an edge that two crops share, each gives up `margin` patches; at the picture's own edges nothing is given up.
    """
    rows, columns = tiling
    by_row = torch.unflatten(crops, 0, tiling)
    strips = [
        torch.cat([_trim(by_row[row, column], 1, column, columns, margin) for column in range(columns)], dim=1)
        for row in range(rows)
    ]
    return torch.cat([_trim(strip, 0, row, rows, margin) for row, strip in enumerate(strips)], dim=0)


def _trim(piece: Tensor, dim: int, index: int, count: int, margin: int) -> Tensor:
    start = 0 if index == 0 else margin
    stop = piece.shape[dim] - (0 if index == count - 1 else margin)
    return piece.narrow(dim, start, stop - start)
