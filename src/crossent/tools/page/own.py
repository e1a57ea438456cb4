"""A row of the user's own: room for it, until a script takes it."""

from __future__ import annotations

from crossent.tools.html import element
from crossent.tools.page.push import strip
from crossent.tools.page.scene import Scene, legend
from crossent.tools.page.words import OFFERED


def own_scene() -> Scene:
    """Leave room for a row of the user's own."""
    invitation = (
        "Paste the logits of one row, or its probabilities, and see what each loss would tell your model. "
        "Nothing leaves this page. In a terminal: crossent explain --logits=2,1,0.1 --target 0 for a row, "
        "crossent score FILE --html scores.html for a file."
    )
    place = (
        '<p class="which"></p><h3 class="headline"></h3>' + legend() + '<div class="panels"></div>' + strip("it", [])
    )
    controls = element("div", "", class_="controls", hidden="hidden")
    opened = element("div", place + controls, class_="opened", hidden="hidden")
    body = element("h2", "And your own model?") + element("p", invitation, class_="legend") + opened
    return Scene("own", "What would it tell mine?", body, {"losses": ("ce", *OFFERED)})
