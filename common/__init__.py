"""The few words that every folder speaks: errors, quantities, the base of a config section."""
