"""How implementations are compared: compare.py is the program, the bench_*.py beside it are the arms.

arm.py is what an arm speaks, processes.py runs them, case.py and random_checkpoint.py make what all of them read, measured.py holds
what it cost, start_up.py times the rest, requirements.py judges, show.py prints.
"""
