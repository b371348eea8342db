"""Support: errors for users, files that are whole or absent, random streams, several processes."""
