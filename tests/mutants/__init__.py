"""Mutants: deliberate single mistakes in the sources, each of which some test has to notice. Run by scripts/mutants."""
