"""What becomes of pictures as pixels: as whoever stores them sees them, and after JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor


def seen(outputs: Tensor) -> Tensor:
    """Outputs as whoever stores them sees them: float, rounded to 0..255; what is no number is black."""
    return outputs.float().nan_to_num(0.0, 0.0, 0.0).round().clamp(0, 255)


def jpeg(picture: Tensor, quality: int) -> Tensor:
    """A picture uint8 [3, H, W] after JPEG at a quality of Pillow's, 1 to 100."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(file)).transpose(2, 0, 1).copy())
