"""Files that are copied into exported models as they are: they import nothing of cellwright."""
