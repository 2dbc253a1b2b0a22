"""``python -m sharespace``."""

from sharespace.cli import main

if __name__ == "__main__":
    main()
