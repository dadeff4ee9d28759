"""The local page, `cellwright serve`: look at images, correct objects, train again, export; built on `api`."""
