"""Numbers alone: score tables, paired comparisons, intervals, seeds, families, power. No study, no file."""
