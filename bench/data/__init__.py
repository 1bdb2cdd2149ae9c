"""Images: where they come from, how they are kept, what is done to them."""

from bench.data.builtin import Digits, Skimage, Torchvision
from bench.data.files import ImageFolder, Parquet
from bench.data.masked import Cityscapes, MaskParquet, Voc
from bench.data.scenes import Scenes

__all__ = ["Cityscapes", "Digits", "ImageFolder", "MaskParquet", "Parquet", "Scenes", "Skimage", "Torchvision", "Voc"]
