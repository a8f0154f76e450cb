"""What an installation provides to other projects: console scripts, a pytest plug-in, and test systems of real processes.

The program is not imported into the user's process: it runs in its own processes, so a project may have its own module called
`router`.
"""
