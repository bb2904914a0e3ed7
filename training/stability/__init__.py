"""What keeps a long run alive, and the means to rehearse what could kill it."""
