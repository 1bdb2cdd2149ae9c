"""What a model does: data splits, loss and utility, behind one seam (bench.types.Task)."""
