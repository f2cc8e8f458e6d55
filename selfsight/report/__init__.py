"""Results for people: tables, comparisons, statistics, contact sheets."""
