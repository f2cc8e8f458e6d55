"""Results as people read them: tables, comparisons, statistics, contact sheets."""
