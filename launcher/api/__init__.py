"""What `import triax` offers: train, load, plan and read runs from Python."""
