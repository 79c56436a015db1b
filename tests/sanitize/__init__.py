"""The pipeline under a sanitizer; see docs/testing.md."""
