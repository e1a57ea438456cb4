"""How good are these logits? Every score of a file of predictions, in blocks of rows, without torch."""
