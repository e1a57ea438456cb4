"""``crossent.check(logits, target)``: finds the usual mistakes around a cross entropy by looking at values.

``options`` says what the values do not show, ``layout`` what their axes mean. ``survey`` reads the values once, one ``row_block``
after the other, and the ``facts`` are what it has seen. The ``rules`` look at the facts: a rule is one small function and a
description. ``findings`` keeps what was found, ``terminal`` and ``command`` show it.
``debug`` looks at the first batches of a training run, ``audit`` tries a loss that somebody wrote. Nothing is guessed from code or
graphs. Finding nothing is no proof. Importing this package imports nothing else.
"""
