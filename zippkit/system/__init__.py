"""Files and progress: what touches the operating system."""
