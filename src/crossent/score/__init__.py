"""How good are these logits? Every score of predictions against labels, in blocks of rows, without torch.

``crossent.score(logits, labels)`` calls :func:`crossent.score.scoring.score`; ``crossent score LOGITS LABELS`` prints its report.
"""

from crossent._callable import make_callable

make_callable(__name__, "scoring:score")
