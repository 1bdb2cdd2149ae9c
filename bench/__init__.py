"""Neural-network watermarking methods under attack: one harness, one protocol, one table."""

__version__ = "0.1.0"
