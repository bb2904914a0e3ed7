"""`triax plan` between its arguments and the planner: configs in, run files and reports out."""
