"""What an experiment gave, for people: ``RESULTS.md`` and ``report.html``."""
