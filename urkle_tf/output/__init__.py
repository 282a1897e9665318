"""What a command writes or shows: complete files, tables, progress, pictures."""
