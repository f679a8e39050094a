"""Public data sets, fetched and converted to the data format."""
