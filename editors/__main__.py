"""`python -m editors COMMAND …`: use a trained editor and its edits; see `editors.cli.line`."""

from __future__ import annotations

import sys

from editors.cli.line import main

if __name__ == "__main__":
    sys.exit(main())
