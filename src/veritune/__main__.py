"""`python -m veritune`: the command line."""

from veritune.commands.main import main

if __name__ == "__main__":
    main()
