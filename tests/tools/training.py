"""What the tests of the training jobs share: quiet runs of seconds, results made up of them, and a reader of pages."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

from crossent.tools.train import JOBS
from crossent.tools.train.job import Results
from crossent.tools.train.results import TrainSettings
from crossent.tools.train.run import job_of, run

CSP = re.compile(
    r"default-src 'none'; style-src 'sha256-[\w+/=]+'; img-src data:; base-uri 'none'; form-action 'none'"
    r"(; script-src 'sha256-[\w+/=]+')?"
)


class Silent:
    """Watches and prints nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, name):
        pass

    def epoch(self, epoch):
        pass

    def finish(self, rate, tried, validation_score):
        pass


def settings(name: str, **changed) -> TrainSettings:
    """Ask for a run of a second or so."""
    entry = JOBS[name]
    options = {option.name: option.default for option in entry.options}
    plain = {"epochs": 2, "seeds": 2, "seed": 0, "rates": (0.1, 1.0), "quick": False, "options": options}
    return TrainSettings(**{**plain, "losses": tuple(entry.losses), **changed})


def small(name: str, sizes=(96, 48, 80)):
    """Make a job whose canvases are few."""
    job = job_of(JOBS[name])
    canvases = getattr(job.load, "__self__", None)
    return job if canvases is None else replace(job, load=replace(canvases, sizes=sizes).load)


def trained(name: str, **changed) -> Results:
    """Run a job in a second or so."""
    return run(small(name), settings(name, **changed), Silent())


def told(results: Results, **by_loss) -> Results:
    """Give losses other scores: ``ce={"accuracy": 0.9}``, or one number for each seed. Every piece of the test part has them."""
    losses = []
    for loss in results.losses:
        runs = []
        for i, each in enumerate(loss.runs):
            scores = {k: v[i] if isinstance(v, tuple) else v for k, v in by_loss.get(_key(loss.name), {}).items()}
            shares = {k: (v,) * len(each.shares[k]) for k, v in scores.items() if k in each.shares}
            runs.append(replace(each, scores={**each.scores, **scores}, shares={**each.shares, **shares}))
        losses.append(replace(loss, runs=tuple(runs)))
    return replace(results, losses=tuple(losses))


def _key(name: str) -> str:
    return name.replace("-", "_")


def only(results: Results, *names: str) -> Results:
    """Keep some of the losses."""
    return replace(
        results,
        losses=tuple(results[name] for name in names),
        settings=replace(results.settings, losses=names),
    )


class Links(HTMLParser):
    """Collects every attribute that could make a browser ask for something."""

    def __init__(self):
        super().__init__()
        self.asked, self.tags, self.meta = [], [], {}

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.asked += [found[key] for key in ("src", "srcset", "href", "action", "data", "poster") if key in found]
        if "http-equiv" in found:
            self.meta[found["http-equiv"]] = found["content"]
