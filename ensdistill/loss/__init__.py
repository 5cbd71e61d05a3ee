"""The losses: their settings, and the native op's arguments by name."""
