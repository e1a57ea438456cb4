"""``crossent.explain(logits, target)``: what each loss tells each class of one row, and what a gradient step makes of it.

``catalogue`` names the losses, ``row_target`` reads the target, ``loss_terms`` computes, ``row_numbers`` keeps the numbers,
and an ``explanation`` shows them. ``tables`` writes them as text once, which ``terminal`` and ``html`` show. ``plot`` draws
them, ``command`` is ``crossent explain``. All numbers come from ``crossent.reference``, in float64. Importing this package
imports nothing else.
"""
