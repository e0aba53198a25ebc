"""Speed and memory on this machine, beside what its own bandwidth and arithmetic allow.

setup.py says what is measured and makes the model, requests.py what it is asked, rates.py measures the machine, trial.py one run
through the real generation, pairs.py compares two series of runs, report.py holds the outcome, measure.py puts them together.
"""
