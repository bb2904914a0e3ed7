"""A step of chosen processes of a large job, on one machine: what each allocates and sends."""
