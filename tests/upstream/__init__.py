"""Upstream's own tests on an unpatched and a patched tree, compared; see docs/testing.md."""
