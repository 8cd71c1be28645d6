"""Results for people: tables, figures, and the sentence that says what to see."""
