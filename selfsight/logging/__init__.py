"""What a run writes down: lines on the console, metrics.jsonl, and trackers of other libraries."""
