"""``python -m teramind VERB ...``."""

from teramind.cli import main

raise SystemExit(main())
