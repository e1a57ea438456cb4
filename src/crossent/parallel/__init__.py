"""Losses beyond one process, on torch.distributed and DTensor."""
