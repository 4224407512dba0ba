"""What dmftopt finds: each experiment is a folder with its script, figure and table. See README.md."""
