"""The ``torch.library`` operators and the autograd Functions over them; nothing else knows them."""
