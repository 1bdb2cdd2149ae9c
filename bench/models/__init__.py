"""Networks: by name, and what can be found out about them."""

from bench.models.cifarnet import Cifarnet
from bench.models.classifiers import Model
from bench.models.gpt import Gpt2, Nano
from bench.models.named import Named
from bench.models.restorers import Restorer
from bench.models.segmenters import Segmenter

__all__ = ["Cifarnet", "Gpt2", "Model", "Named", "Nano", "Restorer", "Segmenter"]
