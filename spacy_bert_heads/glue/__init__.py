"""Train and score GLUE's tasks from their original files, with the official measures."""
