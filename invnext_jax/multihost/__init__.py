"""Starting and coordinating the processes of a multi-host run."""
