"""Networks: by name, and what can be found out about them."""

from bench.models.classifiers import Model
from bench.models.restorers import Restorer

__all__ = ["Model", "Restorer"]
