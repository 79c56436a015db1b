"""scripts/coverage: which lines of the overlay the tests run."""
