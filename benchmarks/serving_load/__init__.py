"""How a server is put under load: serve_load.py is the program.

questions.py makes what is asked and the right answers, clients.py asks, server.py runs the server and looks at it from outside.
"""
