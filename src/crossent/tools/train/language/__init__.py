"""``crossent train bytes``: a small language model, trained with and without the logits of all tokens.

``text`` reads, splits and encodes; ``compressors`` measures what others make of the same bytes; ``model`` is trained with each of
the ``heads`` by ``run``; ``conclusions``, ``tables``, ``panels`` and ``report`` say and show what came of it.
"""
