"""The parts of the pages that ``explore``, ``score``, ``explain`` and ``train`` write: one HTML file each, without any request.

``document`` puts a page together: style, script and data are inside, allowed by their hashes. ``scene`` lays a scene out.
``push``, ``corner``, ``labels``, ``digits`` and ``reliability`` draw what can be read without a script, ``words`` says what each
loss does, and ``numbers`` writes figures. The ``.js`` files draw the same and react to a reader. ``mathematics.js`` is
``crossent.reference`` once more, and a test compares the two. What is shown comes in as plain numbers, so that nothing here
imports the tool that made them.
"""
