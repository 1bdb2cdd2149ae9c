"""Images and text: where they come from, how they are kept, what is done to them."""

from bench.data.builtin import Digits, Skimage, Torchvision
from bench.data.files import ImageFolder, Parquet
from bench.data.listed import Csv
from bench.data.masked import Cityscapes, MaskParquet, Voc
from bench.data.scenes import Scenes
from bench.data.texts import E2e, Plain, Pydoc

__all__ = [
    "Cityscapes",
    "Csv",
    "Digits",
    "E2e",
    "ImageFolder",
    "MaskParquet",
    "Parquet",
    "Plain",
    "Pydoc",
    "Scenes",
    "Skimage",
    "Torchvision",
    "Voc",
]
