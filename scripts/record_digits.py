"""Train on the digits and keep the run for the page: ``python scripts/record_digits.py``, a few minutes."""

import json
from pathlib import Path

from crossent.tools.train.catalogue import JOBS
from crossent.tools.train.command import _settings
from crossent.tools.train.digits_page import digits_data
from crossent.tools.train.run import job_of, run, total_runs
from crossent.tools.train.training_progress import TrainingProgress

KEPT = Path(__file__).resolve().parent.parent / "src/crossent/tools/page/digits.json"


def main() -> None:
    """Run the whole job and write what the page shows of it."""
    entry = JOBS["digits"]
    job = job_of(entry)
    settings = _settings(job, tuple(entry.losses), None, None, 0, None, False)
    results = run(job, settings, TrainingProgress(total_runs(settings), settings.epochs))
    KEPT.write_text(json.dumps(digits_data(results), indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
