"""A table of any form becomes one Parquet file of typed columns, and a description of each column: here only within the process that reads strangers' files.

A new form is a module with a `Source`, and its line in `table.py`; a new way in which a column is written is a Reading in `readings.py`.
"""
