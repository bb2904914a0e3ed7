"""What every folder speaks: errors, quantities, files, the base of a config section."""
