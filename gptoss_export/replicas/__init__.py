"""Replicas of one artifact behind one address, on Ray Serve: a GPU each, on one host or on several.

    clients ─ HTTP ─> Serve's proxy ─> Ingress (ingress.py) ─ Ray ─> Replica (replica.py): engine, server's application

The ingress checks who asks, reads the body, and sends a Call to the replica that PrefixRouter chooses: the one that
knows the beginning of the prompt, unless it is clearly busier (beginnings.py, placement.py). The replica runs the
application of gptoss_export/server in its process, and its response comes back in Parts (calls.py, in_process.py). A
replica that dies is replaced by Serve; what it was asked goes to another one, or ends with an error (forwarding.py).

application.py makes Serve's application of all this. running.py runs it to its end, in a cluster (cluster.py).
"""
