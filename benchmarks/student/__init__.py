"""The student's training: from a cache against targets in memory and online teachers, and against a bare loop."""
