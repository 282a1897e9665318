"""What a command leaves behind or shows: whole files, tables, progress, pictures."""
