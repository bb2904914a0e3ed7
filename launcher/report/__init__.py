"""A run's records as a page: one file for any browser, or served while the run goes on."""
