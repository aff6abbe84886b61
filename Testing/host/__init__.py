"""Stand-ins for the application around the module: enough of it to run panel and scene code for real."""
