"""From a name or a folder to a model in memory, without running the checkpoint's code."""
