"""Where a run's numbers go besides its run file: `logger=tensorboard`, mlflow or wandb; `none` imports nothing.

A run file is the record and a logger is a view of it, of runs that are made, not of those found done. So a logger that
fails is one warning, and the run goes on without it. Each kind is a frozen dataclass (conf/logger) whose `open` gives
a `Sink`; `Log` is what the pipeline speaks to. What goes to every logger: docs/loggers.md.
"""

from bench.loggers.log import About, Log, Logger, Off, Sink, logged
from bench.loggers.mlflow import MLflow
from bench.loggers.tensorboard import TensorBoard
from bench.loggers.wandb import Wandb

__all__ = ["About", "Log", "Logger", "MLflow", "Off", "Sink", "TensorBoard", "Wandb", "logged"]
