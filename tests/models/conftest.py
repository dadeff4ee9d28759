"""Its place puts this folder on the import path, so that tests in the folders below find the helper modules here."""
