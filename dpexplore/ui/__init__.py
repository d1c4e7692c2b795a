"""The page, and its endpoints over HTTP and MCP."""
