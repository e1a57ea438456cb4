"""``crossent explore``: an interactive page that shows what a loss does.

``scenes`` writes each scene, ``document`` of ``crossent.tools.page`` puts them into one file, and ``command`` opens it.
"""
