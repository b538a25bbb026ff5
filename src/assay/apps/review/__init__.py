"""`assay review`: labels looked at and settled in the browser."""
