"""The output of commands: complete files, tables, progress, pictures."""
