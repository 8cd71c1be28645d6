"""The table of class defaults is what the configuration classes of the installed transformers have."""

from tests.helpers.class_defaults import format_class_defaults, generate_class_defaults

from ropewalk.config import class_defaults


def test_table_equals_what_the_classes_have():
    """If transformers was updated: `python -m tests.helpers.class_defaults` writes the table again."""
    generated = generate_class_defaults()
    assert len(generated["architectures"]) > 150
    assert class_defaults.TABLE_PATH.read_text(encoding="utf-8") == format_class_defaults(generated)
