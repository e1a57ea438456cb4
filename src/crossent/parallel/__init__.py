"""Beyond one process, on torch.distributed and DTensor: classes and rows that lie on several, and what they tell each other."""
