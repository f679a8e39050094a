"""Runs beside each other: records, tables, charts, report."""
