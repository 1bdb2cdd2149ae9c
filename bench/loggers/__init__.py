"""Where a run's numbers go besides its run file: `logger=tensorboard`, mlflow or wandb; `none` imports nothing.

A run file is the record and a logger is a view of it, of runs that are made, not of those found done. So a logger that
fails is one warning, and the run goes on without it. Each kind is a frozen dataclass (conf/logger) whose `open` gives
a `Sink`; `Log` is what the pipeline speaks to. To every logger go

    parameters  the resolved configuration, by dotted names
    tags        method, attack, model, data, run_id, config_hash, commit; at the end status and, if any, the reason
    loss        loss/host, loss/mark by epoch, of what this run trained
    rows        KNOB/ber, log10_p, claim_ber, claim_log10_p, utility, damage, seconds, peak_mb and KNOB/strength, by the
                row's place (from 0) on that knob's axis; its verdict as text
    control     what the random keys did: control/random_keys, false_positives, mean_ber, least_log10_p
"""

from bench.loggers.log import About, Log, Logger, Off, Sink, logged
from bench.loggers.mlflow import MLflow
from bench.loggers.tensorboard import TensorBoard
from bench.loggers.wandb import Wandb

__all__ = ["About", "Log", "Logger", "MLflow", "Off", "Sink", "TensorBoard", "Wandb", "logged"]
