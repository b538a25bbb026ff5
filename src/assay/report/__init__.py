"""All that is drawn: tables, charts, pages, notebook views."""
