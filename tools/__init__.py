"""For those who work on the package: benchmark, soak, versions, presets."""
