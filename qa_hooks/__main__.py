"""`python -m qa_hooks` is the `qa-hooks` command."""

from qa_hooks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
