"""Models read from files: those of exports, and those of others."""
