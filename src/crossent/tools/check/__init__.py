"""``crossent.check(logits, target)``: finds the usual mistakes around a cross entropy by looking at values.

``options`` says what the values do not show, ``layout`` what their axes mean. ``survey`` reads them once, in ``pieces`` of some
rows, for the ``facts``, and ``rules`` look at these: a rule is one small function and one card of text. ``findings`` keeps what
was found, ``terminal`` and ``command`` show it.
``debug`` looks at the first batches of a training run, ``audit`` tries a loss that somebody wrote. Nothing is guessed from code or
graphs, and no finding is not proof. Importing this package imports nothing else.
"""
