"""`python -m blackroad`: the same program as `blackroad`."""

from blackroad.cli.main import main

if __name__ == "__main__":
    main(prog_name="blackroad")
