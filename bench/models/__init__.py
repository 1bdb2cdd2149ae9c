"""Networks: by name, and what can be found out about them."""

from bench.models.cifarnet import Cifarnet
from bench.models.classifiers import Model
from bench.models.restorers import Restorer

__all__ = ["Cifarnet", "Model", "Restorer"]
