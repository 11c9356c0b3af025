"""A ZIP of images becomes images of one kind, each with its label: here only within the process that reads strangers' files."""
