"""The job: the only place that knows run folders, stages and settings."""
