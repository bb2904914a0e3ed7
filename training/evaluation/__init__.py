"""What a run finds out about its model now and then: losses on validation sets, tasks."""
