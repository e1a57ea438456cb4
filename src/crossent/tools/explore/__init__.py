"""``crossent explore``: a page that shows what a loss does, and answers to the hand.

``scenes`` writes each scene, ``document`` of ``crossent.tools.page`` puts them into one file, and ``command`` opens it.
"""
