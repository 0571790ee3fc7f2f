"""What nodes compute: named kernels with a contract, a NumPy reference and OpenCL text.

Importing this package costs nothing; `registry` is the door.  It must not know messages, tasks,
routing or the command line.
"""
