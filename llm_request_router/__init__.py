"""What an installation offers to others: the console scripts, the pytest plug-in, and a system of real processes for tests.

Nothing here imports the program into the process of its user: the program runs in processes of its own, so a project that has
a module called `router` of its own is never in the way.
"""
