"""Pictures and tables for people: contact sheets, charts, columns of text."""
