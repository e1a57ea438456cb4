"""How good are these logits? Every score of predictions against labels, in blocks of rows, without torch.

``crossent.score(logits, labels)`` is :func:`crossent.tools.score.scoring.score`; ``crossent score LOGITS LABELS`` prints its
report.
"""
