"""Where a cell's steps are taken: this process, or a training service."""
