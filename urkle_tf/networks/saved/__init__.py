"""Models read from files: exports of this package, and any others."""
