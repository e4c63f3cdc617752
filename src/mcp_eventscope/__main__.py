"""`python -m mcp_eventscope` is the command `mcp-eventscope`."""

import sys

from mcp_eventscope.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
