"""The verbs of the command line, one file each; `edgekit.cli` imports a verb when it is called."""
