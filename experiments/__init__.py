"""What dmftopt finds: each experiment is a folder with its script, figure and table. `python -m experiments.01_digits.run --help`"""
