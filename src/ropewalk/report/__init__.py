"""Results for people to read: tables for the terminal, pictures, and the HTML page of an evaluation."""
