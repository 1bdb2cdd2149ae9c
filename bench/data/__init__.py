"""Images: where they come from, how they are kept, what is done to them."""

from bench.data.builtin import Digits, Skimage, Torchvision
from bench.data.files import ImageFolder, Parquet

__all__ = ["Digits", "ImageFolder", "Parquet", "Skimage", "Torchvision"]
