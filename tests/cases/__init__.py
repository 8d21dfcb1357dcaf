"""What several tests share: examples, and readers of files that kdistill writes but does not read."""
